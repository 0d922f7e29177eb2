"""What the command line says, in the language the user asked for (`lang=ko`).

What the user is told of a run stands here by name. Errors, warnings and alarms are raised in English and put
into Korean as they are shown: `vqa.config.korean`.
"""

import re
import sys
from collections.abc import Sequence

from vqa.config.korean import in_korean

LANGUAGES = ("en", "ko")

MESSAGES: dict[str, tuple[str, str]] = {
    "complete": (
        "nothing left to do: {folder} is complete; study=other starts another",
        "할 일이 없습니다: {folder}은(는) 이미 완료되었습니다. 새로 시작하려면 study=다른이름",
    ),
    "winner": (
        "taking the study's winner from {path} (winner=none leaves it out)",
        "스터디의 최고 설정을 {path}에서 가져옵니다 (winner=none이면 쓰지 않음)",
    ),
    "record": (
        "model, quantization, prompt, image, inference and data as the adapter was trained ({path})",
        "모델, 양자화, 프롬프트, 이미지, 추론, 데이터는 어댑터를 학습한 대로 씁니다 ({path})",
    ),
    "differs": (
        "used as typed, though the adapter was trained otherwise: {line}",
        "어댑터의 학습 설정과 다르지만 입력한 값을 씁니다: {line}",
    ),
    "no record": (
        "{adapter} does not say how it was trained: give the model, quantization, prompt and image of its "
        "training",
        "{adapter}에 학습 설정 기록이 없습니다. 학습 때의 model, quantization, prompt, image를 지정하세요",
    ),
    "held-out": (
        "held-out {scores}, base model {base:.3f}, chance {chance:.3f}",
        "검증 {scores}, 기본 모델 {base:.3f}, 무작위 {chance:.3f}",
    ),
    "evaluated": (
        "test {scores}, base model {base:.3f}, chance {chance:.3f}",
        "테스트 {scores}, 기본 모델 {base:.3f}, 무작위 {chance:.3f}",
    ),
    "test": ("test {scores}", "테스트 {scores}"),
    "scores": (
        "accuracy {accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, n={n})",
        "정확도 {accuracy:.3f} (95 % 구간 {low:.3f} ~ {high:.3f}, n={n})",
    ),
    "compared": (
        "{n} held-out questions on {pictures} pictures, the same for both; {second} minus {first}",
        "두 실행이 공유하는 검증 문항 {n}개, 이미지 {pictures}장; {second} 빼기 {first}",
    ),
    "alarm": ("alarm", "경고"),
    "next": ("next: {what}", "다음: {what}"),
    "look": ("open {path} in a browser", "브라우저에서 {path} 열기"),
    "serving": ("serving at {address} (Ctrl-C ends it)", "{address} 에서 실행 중 (Ctrl-C로 종료)"),
    "ok": ("ok   ", "정상"),
    "wrong": ("wrong", "오류"),
    "check data": ("data", "데이터"),
    "check sweep": ("sweep", "스윕"),
    "check model": ("model", "모델"),
    "check cache folder": ("cache folder", "캐시 폴더"),
    "check device": ("device", "장치"),
    "check output folder and disk": ("output folder and disk", "출력 폴더와 디스크"),
    "check tracking store": ("tracking store", "기록 저장소"),
    "final refuses": (
        "     stage=final refuses this: {why}",
        "     stage=final은(는) 이것을 거부합니다: {why}",
    ),
    "memory": (
        "     {card:>3} GB card: {way}",
        "     {card:>3} GB 카드: {way}",
    ),
    "fits": (
        "{batch} questions a step, {micro} at once{recompute}: {peak:.1f} GiB",
        "한 스텝 {batch}문항, 한 번에 {micro}문항{recompute}: {peak:.1f} GiB",
    ),
    "recompute-nothing": ("", ""),
    "recompute-mlp": (", MLPs computed twice", ", MLP는 두 번 계산"),
    "recompute-layer": (
        ", layers computed twice (gradient checkpointing)",
        ", 층을 두 번 계산(gradient checkpointing)",
    ),
    "weights only": (
        "weights and adapter {peak:.1f} GiB; what a batch adds is not estimated for this family",
        "가중치와 어댑터 {peak:.1f} GiB; 이 모델 계열은 배치 메모리를 추정하지 않음",
    ),
    "too large": (
        "too small; quantization=nf4, a smaller model or a shorter prompt helps",
        "부족합니다. quantization=nf4, 더 작은 모델, 더 짧은 프롬프트를 써 보세요",
    ),
    "features": (
        "     features of {pictures} pictures take {gib:.1f} GiB of the host's memory",
        "     이미지 {pictures}장의 특징은 호스트 메모리 {gib:.1f} GiB를 씁니다",
    ),
    "time": (
        "     time, an estimate: a whole contest takes about {one} on one {card}, {several} on {cards} "
        "(sweep {sweep}, shared by workers; final training {final}; answers {answers})",
        "     시간 추정: 대회 전체에 {card} 1장으로 약 {one}, {cards}장으로 약 {several} "
        "(스윕 {sweep}, 작업자가 나눔; 최종 학습 {final}; 답변 {answers})",
    ),
    "time span": ("{low} to {high}", "{low}~{high}"),
    "time of": (
        "     that is {trials} trials x {folds} folds x {sample} questions if none is pruned, "
        "{passes} passes over {train} questions, {answers} answers",
        "     시도 {trials}개 x 폴드 {folds}개 x 문항 {sample}개(중단 없을 때), "
        "문항 {train}개 학습 {passes}회, 답변 {answers}개",
    ),
    "time estimated": (
        "     from operations and the share of its peak that an H200 reached; the longer time is what a "
        "power limit may make of it. No {card} was measured, and loading is not counted. {card}: {way}",
        "     연산량과 H200에서 측정한 최대 성능 비율로 계산했고, 긴 쪽은 전력 제한을 감안한 값입니다. "
        "{card}는 측정하지 않았으며 로딩 시간은 뺐습니다. {card}: {way}",
    ),
    "time measured": (
        "     from operations and rates that were measured on a {card}; loading is not counted. "
        "{card}: {way}",
        "     연산량과 {card}에서 측정한 속도로 계산했고 로딩 시간은 뺐습니다. {card}: {way}",
    ),
    "time more": (
        "     takes longer, and is not counted: {what}",
        "     시간이 더 들지만 넣지 않은 설정: {what}",
    ),
    "time none": (
        "     no time for a {card}: its memory is too small for this model (doctor.card names another)",
        "     {card}의 시간은 추정하지 않음: 이 모델에 메모리가 부족합니다 (doctor.card로 다른 카드 지정)",
    ),
    "time unknown": (
        "     no time is estimated for this family",
        "     이 모델 계열은 시간을 추정하지 않음",
    ),
    "ensemble member": (
        "weight {weight:.2f} ({family}) {file}: accuracy {accuracy:.3f}, NLL {nll:.4f}, "
        "likeness {likeness:.2f}",
        "가중치 {weight:.2f} ({family}) {file}: 정확도 {accuracy:.3f}, NLL {nll:.4f}, 유사도 {likeness:.2f}",
    ),
    "ensemble unscored": ("weight {weight:.2f} ({family}) {file}", "가중치 {weight:.2f} ({family}) {file}"),
    "ensemble over_best_member": (
        "over the best member: accuracy {accuracy:+.3f} (95 % interval {low:+.3f} to {high:+.3f}), "
        "NLL {nll:+.4f} ({nll_low:+.4f} to {nll_high:+.4f}), n={n}",
        "가장 좋은 모델 대비: 정확도 {accuracy:+.3f} (95 % 구간 {low:+.3f} ~ {high:+.3f}), "
        "NLL {nll:+.4f} ({nll_low:+.4f} ~ {nll_high:+.4f}), n={n}",
    ),
    "ensemble over_equal_weights": (
        "over equal weights: accuracy {accuracy:+.3f} (95 % interval {low:+.3f} to {high:+.3f}), "
        "NLL {nll:+.4f} ({nll_low:+.4f} to {nll_high:+.4f}), n={n}",
        "같은 가중치 대비: 정확도 {accuracy:+.3f} (95 % 구간 {low:+.3f} ~ {high:+.3f}), "
        "NLL {nll:+.4f} ({nll_low:+.4f} ~ {nll_high:+.4f}), n={n}",
    ),
    "control": (
        "     {count} {part} question(s) hold control words of the model, which are asked as plain text: "
        "{shown}",
        "     {part} 문항 {count}개에 모델의 제어 토큰이 들어 있으며 일반 글자로 처리합니다: {shown}",
    ),
    "board study": ("study {study}: {done} of {n} trials", "스터디 {study}: 시도 {n}개 중 {done}개"),
    "board paused": (", {n} paused", ", {n}개 멈춤"),
    "board time left": (", about {time} left", ", 약 {time} 남음"),
    "board unit s": ("{n} s", "{n}초"),
    "board unit min": ("{n} min", "{n}분"),
    "board unit h": ("{n} h", "{n}시간"),
    "board between trials": ("between trials", "시도 사이"),
    "board trial": ("trial {n}", "시도 {n}"),
    "board worker": ("worker {slot} ({host})", "작업자 {slot} ({host})"),
    "board more trials": ("and {n} more in leaderboard.csv", "외 {n}개는 leaderboard.csv에"),
    "board error": ("± is one standard error", "±는 표준오차"),
    "board at step": ("{state} at {step}", "{state} ({step}단계)"),
    "board column trial": ("trial", "시도"),
    "board column state": ("state", "상태"),
    "board column folds": ("folds", "폴드"),
    "board column nll": ("NLL", "NLL"),
    "board column accuracy": ("accuracy", "정확도"),
    "board column seconds": ("s", "초"),
    "board state COMPLETE": ("complete", "완료"),
    "board state PAUSED": ("paused", "멈춤"),
    "board state PRUNED": ("pruned", "중단"),
    "board state FAIL": ("fail", "실패"),
    "board state RUNNING": ("running", "실행 중"),
    "board state WAITING": ("waiting", "대기"),
    "scores none": ("no score", "점수 없음"),
    "scores nll": ("NLL {nll}", "NLL {nll}"),
    "scores accuracy": ("{nll}, accuracy {accuracy}", "{nll}, 정확도 {accuracy}"),
    "ties some": (
        "Not told apart from it (5 %, all trials together): {trials}. Any of them may do.",
        "다음 시도와는 차이를 구별할 수 없습니다 (5 %, 모든 시도 함께): {trials}. 어느 것을 써도 됩니다.",
    ),
    "ties unknown": (
        "Not compared with it, for want of common questions: trials {trials}.",
        "공통 문항이 없어 비교하지 못한 시도: {trials}.",
    ),
    "ties none": (
        "No other complete trial ties with it (5 %, all trials together).",
        "동률인 다른 완료된 시도가 없습니다 (5 %, 모든 시도 함께).",
    ),
    "ties expected": (
        "Expected {title} {score:.4f}, corrected for its having been picked.",
        "기대 {title} {score:.4f} (골라낸 효과를 보정).",
    ),
    "ties unmeasured": (
        "Noise of training it again: not measured (hydra.sweeper.confirm).",
        "다시 학습할 때의 변동: 측정하지 않음 (hydra.sweeper.confirm).",
    ),
    "ties noise": (
        "Training it again moves its {title} by {sd:.4f} (1 s.d.){share}.",
        "다시 학습하면 {title} {sd:.4f}만큼 달라집니다 (표준편차){share}.",
    ),
    "objective nll": ("NLL", "NLL"),
    "objective accuracy": ("accuracy", "정확도"),
    "objective calibrated_nll": ("calibrated NLL", "보정한 NLL"),
    "cost seconds": ("seconds per question", "문항당 초"),
    "cost parameters": ("trained weights", "학습한 가중치 수"),
    "front first": (
        "Pareto front of {title} and {costs}: {trials}. The final run takes trial {n}, the best {title} "
        "on it; hydra.sweeper.final_trial names another.",
        "{title}, {costs}의 파레토 프런트: {trials}. 최종 학습은 그중 {title}이(가) 가장 좋은 시도 {n}을 "
        "씁니다. 다른 시도는 hydra.sweeper.final_trial로 고릅니다.",
    ),
    "front told": (
        "Pareto front of {title} and {costs}: {trials}. The final run takes trial {n}, as "
        "hydra.sweeper.final_trial says.",
        "{title}, {costs}의 파레토 프런트: {trials}. 최종 학습은 hydra.sweeper.final_trial에 따라 "
        "시도 {n}을 씁니다.",
    ),
    "ties share": (", {share:.0%} of its variance", ", 분산의 {share:.0%}"),
    "trial starts": ("trial {n} starts: {values}", "시도 {n} 시작: {values}"),
    "trial goes on": ("trial {n} goes on: {values}", "시도 {n} 계속: {values}"),
    "trial failed": ("trial {n} failed: {error}", "시도 {n} 실패: {error}"),
    "trial COMPLETE": ("trial {n} complete: {scores}", "시도 {n} 완료: {scores}"),
    "trial PAUSED": ("trial {n} paused at step {step}: {scores}", "시도 {n} 멈춤 ({step}단계): {scores}"),
    "trial PRUNED": ("trial {n} pruned at step {step}: {scores}", "시도 {n} 중단 ({step}단계): {scores}"),
    "study over": ("study {study}: all {n} trials done.", "스터디 {study}: 시도 {n}개를 모두 마쳤습니다."),
    "study best": ("Best: trial {n}, {scores}: {values}", "최고: 시도 {n}, {scores}: {values}"),
    "study files": (
        "See {folder}/leaderboard.csv and best.yaml.",
        "{folder}/leaderboard.csv와 best.yaml을 보세요.",
    ),
    "study final": ("final run with trial {n}: {values}", "시도 {n}의 설정으로 최종 학습: {values}"),
    "study none complete": (
        "study {study}: all {n} trials done, none of them complete: there is no winner.",
        "스터디 {study}: 시도 {n}개를 마쳤지만 끝까지 간 것이 없어 최고 설정이 없습니다.",
    ),
    "study closed": (
        "study {study}: {done} of {n} trials done{final}: nothing is left.",
        "스터디 {study}: 시도 {n}개 중 {done}개 완료{final}. 할 일이 없습니다.",
    ),
    "study closed final": (", the final run too", ", 최종 학습도 완료"),
    "study elsewhere": (
        "Results are in {folder}; study=other starts another study.",
        "결과는 {folder}에 있습니다. 새로 시작하려면 study=다른이름",
    ),
    "study interrupted": (
        "study {study} interrupted, {done} of {n} trials done; the same command goes on from here.",
        "스터디 {study} 중지됨, 시도 {n}개 중 {done}개 완료. 같은 명령으로 이어서 합니다.",
    ),
    "study not over": (
        "study {study}: {done} of {n} trials done, {why}; the same command goes on from here.",
        "스터디 {study}: 시도 {n}개 중 {done}개 완료, {why}. 같은 명령으로 이어서 합니다.",
    ),
    "study out of time": (
        "out of time (hydra.sweeper.timeout_s={s})",
        "시간이 다 됨 (hydra.sweeper.timeout_s={s})",
    ),
    "study others": ("{n} trials are run by other processes", "시도 {n}개는 다른 프로세스가 실행 중"),
    "status no worker": ("no worker is up", "실행 중인 작업자 없음"),
    "status best": ("best: trial {n}, {scores}: {values}", "최고: 시도 {n}, {scores}: {values}"),
    "status final done": ("final run: done, see {folder}", "최종 학습: 완료, {folder}"),
    "status final begun": ("final run: begun", "최종 학습: 시작됨"),
    "status storage": ("storage: {address}", "저장소: {address}"),
    "options": ("questions have {said} options", "문항의 보기는 {said}개"),
    "final base": (
        "scoring the base model on {n} held-out questions",
        "기본 모델로 검증 문항 {n}개 채점",
    ),
    "final evaluation": (
        "evaluation {n}: NLL {nll:.4f}, accuracy {accuracy:.3f}",
        "평가 {n}: NLL {nll:.4f}, 정확도 {accuracy:.3f}",
    ),
    "trial fold": (
        "{trial}, fold {n} of {folds}: NLL {nll:.4f}, accuracy {accuracy:.3f}, {seconds:.1f} s",
        "{trial}, 폴드 {n}/{folds}: NLL {nll:.4f}, 정확도 {accuracy:.3f}, {seconds:.1f}초",
    ),
    "healthy": (
        "all good; next: {command}",
        "모두 정상. 다음: {command}",
    ),
}


def message(lang: str, name: str, **values: object) -> str:
    """One message, filled in, for rich: a name with square brackets in it is no markup.

    Args:
        lang: One of `LANGUAGES`.
        name: A key of `MESSAGES`.
        values: Its fields.
    """
    from rich.markup import escape

    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    safe = {key: escape(str(value)) for key, value in values.items()} | numbers
    return plain_message(lang, name, **safe)


def plain_message(lang: str, name: str, **values: object) -> str:
    """The same for a log line or a `rich.text.Text`, where brackets mean nothing."""
    return MESSAGES[name][LANGUAGES.index(lang if shows(lang) else "en")].format(**values)


def in_language(lang: str, both: tuple[str, str]) -> str:
    """One of an English and a Korean text; a terminal without Korean letters gets the English one."""
    return both[lang == "ko" and shows(lang)]


def told(lang: str, text: str) -> str:
    """An error, warning or alarm of the code in the user's language; one that is not known stays English."""
    return in_korean(text) if lang == "ko" and shows(lang) else text


_spoken = "en"


def speak(lang: object) -> None:
    """Have `spoken` tell this language from now on; one that is none of ours is refused later."""
    global _spoken
    if lang in LANGUAGES:
        _spoken = str(lang)


def spoken() -> str:
    """The language of this process's errors and log lines."""
    return _spoken


def asked_language(words: Sequence[str]) -> str:
    """What a command line says of the language, before anything of it is read or checked; else "en"."""
    asked = [word.lstrip("+").removeprefix("lang=") for word in words if word.lstrip("+").startswith("lang=")]
    return asked[-1] if asked else "en"


KOREAN_WORK = {  # what `vqa.progress.progress` is told -> in Korean
    r"training": "학습",
    r"pictures": "이미지",
    r"scoring": "채점",
    r"base model": "기본 모델",
    r"held-out part": "검증 문항",
    r"without adaptation": "적응 없이",
    r"generating": "생성",
    r"fold (\d+)": r"폴드 \1",
    r"fold (\d+) of (\d+)": r"폴드 \1/\2",
    r"adapting \((\w+)\)": r"적응 (\1)",
    r"checking pictures": "이미지 검사",
    r"comparing pictures": "이미지 비교",
    r"waiting for a fold that another worker trains": "다른 작업자가 학습 중인 폴드를 기다림",
}


def worded(lang: str, work: str) -> str:
    """The name of a piece of work for the bars; one that is not known stays as it is."""
    if lang == "ko" and shows(lang):
        for pattern, korean in KOREAN_WORK.items():
            if found := re.fullmatch(pattern, work):
                return found.expand(korean)
    return work


def shows(lang: str) -> bool:
    """Whether the terminal can show a language: one in ASCII gets English instead of codes for letters."""
    try:
        "한글".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return lang != "ko"
    return True
