"""What the command line says, in the language the user asked for (`lang=ko`). Errors stay English."""

import sys

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
    "alarm": ("alarm", "경고"),
    "next": ("next: {what}", "다음: {what}"),
    "look": ("open {path} in a browser", "브라우저에서 {path} 열기"),
    "serving": ("serving at {address} (Ctrl-C ends it)", "{address} 에서 실행 중 (Ctrl-C로 종료)"),
    "ok": ("ok   ", "정상"),
    "wrong": ("wrong", "오류"),
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
    "control": (
        "     {count} {part} question(s) hold control words of the model, which are asked as plain text: "
        "{shown}",
        "     {part} 문항 {count}개에 모델의 제어 토큰이 들어 있으며 일반 글자로 처리합니다: {shown}",
    ),
    "options": ("questions have {said} options", "문항의 보기는 {said}개"),
    "healthy": (
        "all good; next: {command}",
        "모두 정상. 다음: {command}",
    ),
}


def message(lang: str, name: str, **values: object) -> str:
    """One message, filled in, for rich: a name with square brackets in it is no markup.

    Args:
        lang: "en" or "ko".
        name: A key of `MESSAGES`.
        values: Its fields.
    """
    from rich.markup import escape

    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    safe = {key: escape(str(value)) for key, value in values.items()} | numbers
    return MESSAGES[name][LANGUAGES.index(lang if shows(lang) else "en")].format(**safe)


def shows(lang: str) -> bool:
    """Whether the terminal can show a language: one in ASCII gets English instead of codes for letters."""
    try:
        "한글".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return lang != "ko"
    return True
