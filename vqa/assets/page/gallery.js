"use strict";
(() => {
  const PAGE = 24;
  const { rows, pictures } = JSON.parse(document.getElementById("data").textContent);
  const [PART, ID, KIND, GOLD, ANSWER, P, FLAG, TEXT, CHOICES, PICTURE, BASE] = Array(11).keys();
  const words = {
    en: { valid: "held out", oof: "out of fold", test: "test", all: "all", none: "none", of: (n, m) => `${n} of ${m} answers`, blank: "picture not in this file", nothing: "nothing matches", bill: (h, c) => `${h} h × price = ${c}`, gold: "right", answer: "answered", fixed: "base {b}: fixed", broken: "base {b}: broken", both: "base {b}: both wrong", same: "base {b}: both right", large: "enlarge" },
    ko: { valid: "검증", oof: "교차검증", test: "테스트", all: "전체", none: "없음", of: (n, m) => `응답 ${m}개 중 ${n}개`, blank: "이 파일에 이미지 없음", nothing: "해당하는 문항이 없습니다", bill: (h, c) => `${h} 시간 × 가격 = ${c}`, gold: "정답", answer: "응답", fixed: "기본 모델 {b}: 고쳐짐", broken: "기본 모델 {b}: 틀리게 됨", both: "기본 모델 {b}: 둘 다 오답", same: "기본 모델 {b}: 둘 다 정답", large: "크게 보기" },
  };
  const say = () => words[document.documentElement.lang === "ko" ? "ko" : "en"];
  const form = document.getElementById("filters"), cards = document.getElementById("cards");
  const count = document.getElementById("count"), more = document.getElementById("more");
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const change = (row) => {
    if (!row[BASE] || !row[GOLD]) return "";
    const before = row[BASE] === row[GOLD], after = row[ANSWER] === row[GOLD];
    return before ? (after ? "same" : "broken") : after ? "fixed" : "both";
  };
  const confidence = (row) => Math.max(...row[P]);
  const distinct = (column) => [...new Set(rows.map((row) => row[column]).filter(Boolean))];

  function fill(name, values, withAll, label) {
    const select = form.elements[name], chosen = select.value;
    select.replaceChildren();
    if (withAll) select.append(new Option(say().all, ""));
    for (const value of values) select.append(new Option(label ? label(value) : value, value));
    if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
    select.parentElement.hidden = values.length < (withAll ? 1 : 2);
  }
  function translate() {
    fill("part", distinct(PART), false, (part) => say()[part] || part);
    for (const [name, column] of [["gold", GOLD], ["answer", ANSWER], ["kind", KIND]]) fill(name, distinct(column).sort(), true);
    for (const option of form.querySelectorAll("option[data-en]")) option.textContent = option.dataset[document.documentElement.lang === "ko" ? "ko" : "en"];
    form.elements.change.parentElement.hidden = !rows.some((row) => row[BASE]);
    bill();
    show();
  }
  let found = [], shown = 0;
  function show() {
    const want = Object.fromEntries(new FormData(form));
    const needle = (want.find || "").toLowerCase();
    const labelled = rows.some((row) => row[PART] === want.part && row[GOLD]);
    const compared = rows.some((row) => row[PART] === want.part && change(row));
    const changed = compared ? want.change : "";  // a fixed question is a right answer: this filter alone decides
    found = rows.filter((row) =>
      (!want.part || row[PART] === want.part) &&
      (!changed || change(row) === changed) &&
      (changed || !want.result || !labelled || (row[ANSWER] === row[GOLD]) === (want.result === "right")) &&
      (!want.gold || row[GOLD] === want.gold) && (!want.answer || row[ANSWER] === want.answer) && (!want.kind || row[KIND] === want.kind) &&
      (!needle || `${row[ID]} ${row[TEXT]} ${row[CHOICES].join(" ")}`.toLowerCase().includes(needle)));
    if (want.sort !== "0") found.sort((a, b) => Number(want.sort) * (confidence(a) - confidence(b)));
    const total = rows.filter((row) => !want.part || row[PART] === want.part).length;
    count.textContent = found.length ? say().of(found.length, total) : say().nothing;
    cards.replaceChildren();
    shown = 0;
    grow();
  }
  function grow() {
    cards.append(...found.slice(shown, shown + PAGE).map(card));
    shown += PAGE;
    more.hidden = shown >= found.length;
  }
  function card(row) {
    const item = element("li", "card"), own = [row[PICTURE]].flat();  // several pictures are a list
    const shownOf = own.length > 1 ? element("div", "several") : item;
    if (own.length > 1) item.append(shownOf);
    own.forEach((number, index) => {
      if (number < 0) return shownOf.append(element("div", "blank", say().blank));
      const image = element("img"), place = own.length > 1 ? ` (${index + 1}/${own.length})` : "";
      image.src = pictures[number];
      image.alt = (row[TEXT] || row[ID]) + place;
      const button = element("button", "enlarge");
      button.type = "button";
      button.setAttribute("aria-label", `${say().large}: ${image.alt}`);
      button.append(image);
      button.addEventListener("click", () => enlarge(row, number, image.alt));
      shownOf.append(button);
    });
    const body = element("div", "body"), list = element("ul");
    body.append(element("p", "", row[TEXT] || row[ID]));
    row[P].forEach((p, index) => {
      const letter = "abcdef"[index];
      const option = element("li", "option" + (letter === row[GOLD] ? " gold" : letter === row[ANSWER] && row[GOLD] ? " wrong" : ""));
      option.style.setProperty("--p", `${100 * p}%`);
      const mark = letter === row[GOLD] ? " ✓" : letter === row[ANSWER] ? (row[GOLD] ? " ✗" : " ←") : "";
      option.append(element("span", "", letter + mark), element("span", "", row[CHOICES][index]), element("span", "", `${(100 * p).toFixed(1)} %`));
      list.append(option);
    });
    body.append(list);
    if (change(row)) body.append(element("div", `change ${change(row)}`, say()[change(row)].replace("{b}", row[BASE])));
    body.append(element("footer", "", [row[ID], row[KIND], row[FLAG]].filter(Boolean).join(" · ")));
    item.append(body);
    return item;
  }
  const large = document.getElementById("large");
  function enlarge(row, number, text) {
    const image = large.querySelector("img");
    image.src = pictures[number];
    image.alt = text;
    document.getElementById("large-text").textContent = `${row[ID]} · ${row[TEXT]}`;
    large.showModal();
  }
  const quoted = (value) => `"${String(/^[=+\-@\t\r]/.test(value) ? `'${value}` : value).replaceAll('"', '""')}"`;  // no formula
  document.getElementById("export").addEventListener("click", () => {
    const letters = [..."abcdef"].slice(0, Math.max(2, ...found.map((row) => row[P].length)));
    const head = ["part", "id", "type", "right", "answered", "base_answered", ...letters.map((letter) => `p_${letter}`), "question"];
    const lines = found.map((row) => [row[PART], row[ID], row[KIND], row[GOLD], row[ANSWER], row[BASE], ...letters.map((_, index) => row[P][index] ?? ""), row[TEXT]].map(quoted).join(","));
    const address = URL.createObjectURL(new Blob(["\ufeff" + [head.join(","), ...lines].join("\r\n") + "\r\n"], { type: "text/csv" }));
    const link = Object.assign(document.createElement("a"), { href: address, download: "answers.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
  const price = document.getElementById("price"), output = document.getElementById("bill");
  function bill() {
    const hours = Number(output.dataset.hours);
    output.textContent = say().bill(hours.toFixed(2), (hours * Number(price.value || 0)).toFixed(2));
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { const next = cards.children.length; grow(); const image = cards.children[next]; if (image) { image.tabIndex = -1; image.focus(); } });
  price.addEventListener("input", bill);
  document.addEventListener("language", translate);
  translate();
})();
