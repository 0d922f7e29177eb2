"""What the command line says, in the language the user asked for (`lang=ko`). Errors stay English."""

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
    "healthy": (
        "all good; next: python -m vqa.run -m +sweep=lora",
        "모두 정상. 다음: python -m vqa.run -m +sweep=lora",
    ),
}


def message(lang: str, name: str, **values: object) -> str:
    """One message, filled in.

    Args:
        lang: "en" or "ko".
        name: A key of `MESSAGES`.
        values: Its fields.
    """
    return MESSAGES[name][LANGUAGES.index(lang)].format(**values)
