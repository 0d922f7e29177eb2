"""What the pages say is so: their commands, keys, options, files and links; both languages say the same."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from vqa.config.check import read_settings, register_resolvers
from vqa.config.words import spelled_out
from vqa.data.contest_csv import ContestCsv

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "README.ko.md", "CONTRIBUTING.md", *DOCS]
NEEDS = re.compile(r"\bneeds?\b|필요", re.IGNORECASE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
# what a reader's machine may lack: a visible sentence says so, and these blocks are not run here
LACKING = re.compile(
    r"qwen|torchrun|srun|sbatch|ray job|createdb|optuna-dashboard|mlflow|\bpip\b|browser|"
    r"\b(OUT|FOLDER|WORK|GRID)\b"
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> Iterator[tuple[str, str]]:
    """Each fenced block of a language, with the paragraph before it."""
    text = text_of(name)
    for found in FENCE.finditer(text):
        if found[1] == language:
            yield text[: found.start()].rstrip().rpartition("\n\n")[2], found[2]


def lines_of(block: str) -> list[str]:
    """The commands of a block: continued lines joined, comments left out."""
    joined = re.sub(r"\s*\\\n\s*", " ", block)
    return [line for raw in joined.splitlines() if (line := re.sub(r"(?:^|\s+)#.*", "", raw).strip())]


def spans(name: str) -> list[str]:
    """The commands within sentences and tables."""
    found = SPAN.findall(FENCE.sub("", text_of(name)))
    return [span for span in found if re.match(r"(python -m|make|time make|mkdocs) ", span)]


def commands(name: str) -> list[str]:
    return [line for _, block in blocks(name, "sh") for line in lines_of(block)] + spans(name)


def runs(name: str) -> list[str]:
    """What follows `-m vqa.run` in each command, however it is started."""
    found = [re.split(r"-m vqa\.run\b", command)[1:] for command in commands(name)]
    return [part.strip() for parts in found for part in parts]


RUNS = sorted({(run, name) for name in PAGES for run in runs(name)})


def composed(run: str) -> DictConfig | None:
    """The configuration that a command's overrides make; None for Hydra's own flags."""
    # a quote that a surrounding --wrap '...' opened ends here
    words = shlex.split(run if run.count("'") % 2 == 0 else run.replace("')", "").replace("'", ""))
    flags = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if not word.startswith("-") and word not in {"...", "|"}]
    overrides = [word for word in overrides if not word.endswith("=...")]
    if set(flags) - {"-m"}:
        return None
    overrides = spelled_out(overrides)
    forced = any(word.startswith("++data.") for word in overrides)  # the adapter's record says which data
    if forced and not any(word.startswith("data=") for word in overrides):
        overrides.append("data=csv")
    assert all("=" in word for word in overrides), run
    sweep = any(word.startswith("+sweep=") for word in overrides)
    assert sweep == ("-m" in flags), run
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf")):
        return compose("config", overrides=overrides, return_hydra_config=sweep)


@pytest.fixture
def resolvers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register_resolvers()
    monkeypatch.setenv("DATA_PATH", str(tmp_path))


@pytest.mark.usefixtures("resolvers")
@pytest.mark.parametrize(("run", "page"), RUNS, ids=[f"{page}: {run}" for run, page in RUNS])
def test_every_command_of_a_page_is_accepted(run: str, page: str) -> None:
    if "model=mine" in run:  # test_bring_your_own runs it
        return
    cfg = composed(run)
    if cfg is None:
        assert re.fullmatch(r"(--help|--cfg job|-sc install=bash\)?\"?)", run), (run, page)
        return
    if "hydra" in cfg:
        with_sweeper = OmegaConf.to_container(cfg.hydra.sweeper, resolve=False)
        assert isinstance(with_sweeper, dict)
        assert with_sweeper["_target_"].endswith("StudySweeper")
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    assert read_settings(cfg).study


@pytest.mark.parametrize("name", PAGES)
def test_a_command_that_asks_for_more_says_what_it_needs(name: str) -> None:
    for before, block in blocks(name, "sh"):
        if any(LACKING.search(line) for line in lines_of(block)):
            assert NEEDS.search(before), (name, before, block)


@pytest.mark.parametrize("name", PAGES)
def test_every_other_command_is_known(name: str) -> None:
    """A line is a run of ours, a make target, a module of ours, or stands below what it needs."""
    told = {line for before, block in blocks(name, "sh") if NEEDS.search(before) for line in lines_of(block)}
    for command in commands(name):
        if "vqa.run" in command or command in told or re.match(r"(time )?make ", command):
            continue
        if command.startswith("vqa "):
            assert spelled_out(shlex.split(command)[1:]), command  # it refuses what is no short form
            continue
        known = r"python -m (benchmarks|pretrain|vqa\.config)\.\w+|mkdocs (build --strict|serve)$"
        assert re.match(known, command), command


@pytest.mark.parametrize("name", PAGES)
def test_benchmarks_know_the_flags_that_pages_give_them(name: str) -> None:
    for command in commands(name):
        for module, rest in re.findall(
            r"python -m ((?:benchmarks|pretrain|vqa.config)[.\w]+)([^#]*)", command
        ):
            file = ROOT / f"{module.replace('.', '/')}.py"
            assert file.exists(), command
            for flag in re.findall(r"(?<=\s)--[\w-]+", rest):
                assert flag in file.read_text(encoding="utf-8"), (command, flag)


def test_both_languages_have_the_same_quick_start() -> None:
    def sh(name: str) -> list[str]:
        return [line for _, block in blocks(name, "sh") for line in lines_of(block)]

    assert sh("README.ko.md") == sh("README.md")
    assert sh("docs/quick_start.ko.md") == sh("docs/quick_start.md")
    assert "make demo" in sh("README.md")


@pytest.mark.parametrize(
    "pair", [("README.md", "README.ko.md"), ("docs/quick_start.md", "docs/quick_start.ko.md")]
)
def test_both_languages_say_the_same(pair: tuple[str, str]) -> None:
    """Section by section: the same tables, code words, pictures and numbers."""
    english, korean = ([part.splitlines() for part in text_of(name).split("\n## ")] for name in pair)
    assert len(english) == len(korean)
    for here, there in zip(english, korean, strict=True):
        for kind in (r"^\|", r"^```", r"^\d\. ", r"^!\[", r"^- "):
            count = [sum(bool(re.match(kind, line)) for line in part) for part in (here, there)]
            assert count[0] == count[1], (here[0], there[0], kind)
        code = [sorted(set(SPAN.findall("\n".join(part[1:])))) for part in (here, there)]
        assert code[0] == code[1], (here[0], there[0])
        numbers = [sorted(set(re.findall(r"\d+\.\d+", "\n".join(part)))) for part in (here, there)]
        assert numbers[0] == numbers[1], (here[0], there[0])


def test_the_readme_is_short() -> None:
    for name in ("README.md", "README.ko.md"):
        assert len(text_of(name).splitlines()) <= 150


@pytest.mark.usefixtures("resolvers")
def test_the_three_lines_of_the_readme_are_a_contest_file(tmp_path: Path) -> None:
    for name in ("README.md", "README.ko.md", "docs/your_csv.md"):
        [(_, block)] = blocks(name, "csv")
        (tmp_path / "train.csv").write_text(block, encoding="utf-8")
        (tmp_path / "photos").mkdir(exist_ok=True)
        for row in block.splitlines()[1:]:
            Image.new("RGB", (64, 64)).save(tmp_path / row.split(",")[1])
        source = ContestCsv(str(tmp_path / "train.csv"), None, str(tmp_path))
        assert source.check() == []
        assert [q.id for q in source.train()] == ["0001", "0002", "0003"]


@pytest.mark.parametrize(
    ("folder", "page"), [("pretrain", "docs/models.md"), ("benchmarks", "docs/benchmarks.md")]
)
def test_the_tree_names_every_module(folder: str, page: str) -> None:
    """Those of `vqa/` stand in docs/rooms.md: test_rooms.py."""
    rows = [row.split("|")[1] for row in text_of(page).splitlines() if row.startswith("|")]
    named = {f"{folder}/{file}" for where in rows for file in SPAN.findall(where)}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
    assert {path for path in there if not path.endswith("__init__.py")} <= named


@pytest.mark.parametrize("name", PAGES)
def test_everything_in_the_tree_is_there(name: str) -> None:
    for span in SPAN.findall(FENCE.sub("", text_of(name))):
        if re.fullmatch(r"(vqa|tests|conf|benchmarks|pretrain|notebooks|docs|\.ci)/[\w/.]*", span):
            assert (ROOT / span).exists(), (name, span)


def test_result_files_on_the_pages_are_there() -> None:
    for name in ("docs/benchmarks.md", "docs/benchmarks_history.md"):
        for file in re.findall(r"`(\d{4}-\d\d-\d\d-[\w.-]+\.json)`", text_of(name)):
            assert (ROOT / "benchmarks/results" / file).exists(), (name, file)


def test_the_readme_names_every_room() -> None:
    rooms = {f"vqa/{path.parent.name}/" for path in (ROOT / "vqa").glob("*/__init__.py")}
    named = re.findall(r"^\| `(vqa/\w+/)`", text_of("README.md"), re.MULTILINE)
    assert set(named) == rooms
    assert re.findall(r"^\| `(vqa/\w+/)`", text_of("README.ko.md"), re.MULTILINE) == named


def test_the_tree_names_every_option() -> None:
    """The table of groups in the page of the configuration."""
    rows = re.findall(r"^\| `\+?([\w/]+)` \| ([^|]+) \|", text_of("docs/configuration.md"), re.MULTILINE)
    options = {group: sorted(re.findall(r"[\w]+", names)) for group, names in rows}
    for folder in (
        path for path in (ROOT / "conf").rglob("*") if path.is_dir() and list(path.glob("*.yaml"))
    ):
        group = folder.relative_to(ROOT / "conf").as_posix()
        if group in {"hydra/help", "hydra/sweeper"}:
            continue
        there = {path.stem for path in folder.glob("*.yaml")}
        assert there <= {*options[group], "trials", "grid"}, group


@pytest.mark.usefixtures("resolvers")
def test_the_settings_page_names_every_key_and_the_configuration_page_those_of_a_sweep() -> None:
    named = set(SPAN.findall(text_of("docs/settings.md")))
    for option in ("easy_vqa", "csv", "emoji_quiz"):
        cfg = composed(f"data={option} study=mine")
        assert cfg is not None
        for group, node in cfg.items():
            keys = [f"{group!s}.{key!s}" for key in node] if isinstance(node, DictConfig) else [str(group)]
            for key in keys:
                below = OmegaConf.select(cfg, key)
                parts = {f"{key}.{part!s}" for part in below} if isinstance(below, DictConfig) else {key}
                if not key.rpartition(".")[2].startswith("_"):
                    assert key in named or (parts and parts <= named), key
    sweep = composed("-m +sweep=lora")
    assert sweep is not None
    section = {*SPAN.findall(text_of("docs/configuration.md").split("## The sweep")[1])}
    for key in sweep.hydra.sweeper:
        assert key.startswith("_") or key in section, key


def test_the_tree_names_every_make_target() -> None:
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert {*re.findall(r"make (\w+)", text_of("CONTRIBUTING.md"))} == {*targets}


@pytest.mark.parametrize("name", PAGES)
def test_make_is_told_targets_it_has(name: str) -> None:
    told = re.findall(r"(?:^|`|\n|time )make (\w+)", text_of(name))
    assert {*told} <= {*re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)}


@pytest.mark.parametrize("name", [*PAGES, "benchmarks/README.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target, _, anchor in re.findall(r"\]\(([^)#:]+?)(#([^)]*))?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", (page.parent / target).read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, (name, target, anchor)


def test_no_page_skips_a_level_of_headings() -> None:
    for name in PAGES:
        levels = [len(found) for found in re.findall(r"^(#+) ", FENCE.sub("", text_of(name)), re.MULTILINE)]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels)), name


def test_the_site_asks_nothing_of_the_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, env={"PATH": "", "NO_MKDOCS_2_WARNING": "1"})
    pages = list(tmp_path.glob("*.html"))
    assert {f"docs/{path.stem}.md" for path in pages} >= {*DOCS}
    for page in pages:
        assert not re.search(
            r"<(script|link|img)[^>]+(src|href)=\"?(https?:)?//", page.read_text(encoding="utf-8")
        )


def test_python_of_the_pages_parses() -> None:
    for name in PAGES:
        for _, block in blocks(name, "python"):
            ast.parse(block)
