"""The words of the made-up world: what pictures show, and what is only ever read.

Held out on purpose, so that fine-tuning has something real to learn: `READ_ONLY` words never name anything in
a picture. They appear as options and in reading tasks ("which option says teal?"), never as the answer to a
question about the picture. `HELD_OUT` are the three of them that the easy-VQA demo asks for.
"""

from typing import NamedTuple


class Word(NamedTuple):
    """One thing to say, in both languages."""

    english: str
    korean: str


CIRCLE, SQUARE, TRIANGLE, STAR = (
    Word("circle", "원"),
    Word("square", "정사각형"),
    Word("triangle", "삼각형"),
    Word("star", "별"),
)
CROSS, RING, DIAMOND, HEXAGON = (
    Word("cross", "십자가"),
    Word("ring", "고리"),
    Word("diamond", "마름모"),
    Word("hexagon", "육각형"),
)
BAR, ARROW, MOON = Word("bar", "막대"), Word("arrow", "화살표"), Word("moon", "달")
SHAPES = (CIRCLE, SQUARE, TRIANGLE, STAR, CROSS, RING, DIAMOND, HEXAGON, BAR, ARROW, MOON)

RED, ORANGE, YELLOW, GREEN, BLUE = (
    Word("red", "빨간색"),
    Word("orange", "주황색"),
    Word("yellow", "노란색"),
    Word("green", "초록색"),
    Word("blue", "파란색"),
)
PURPLE, PINK, WHITE, BLACK, GRAY = (
    Word("purple", "보라색"),
    Word("pink", "분홍색"),
    Word("white", "흰색"),
    Word("black", "검은색"),
    Word("gray", "회색"),
)
COLORS = (RED, ORANGE, YELLOW, GREEN, BLUE, PURPLE, PINK, WHITE, BLACK, GRAY)

COUNTS = (Word("one", "한 개"), Word("two", "두 개"), Word("three", "세 개"), Word("four", "네 개"))
CORNERS = (  # row-major: index = right + 2 * lower
    Word("top left", "왼쪽 위"),
    Word("top right", "오른쪽 위"),
    Word("bottom left", "왼쪽 아래"),
    Word("bottom right", "오른쪽 아래"),
)
YES, NO = Word("yes", "예"), Word("no", "아니요")
SMALL, BIG = Word("small", "작은"), Word("big", "큰")

HELD_OUT = (Word("rectangle", "직사각형"), Word("teal", "청록색"), Word("brown", "갈색"))
READ_ONLY = (
    *HELD_OUT,
    Word("cat", "고양이"),
    Word("dog", "개"),
    Word("car", "자동차"),
    Word("tree", "나무"),
    Word("house", "집"),
    Word("plastic", "플라스틱"),
    Word("paper", "종이"),
    Word("can", "캔"),
    Word("glass", "유리"),
    Word("bottle", "병"),
    Word("box", "상자"),
    Word("bus", "버스"),
    Word("ship", "배"),
    Word("flower", "꽃"),
    Word("river", "강"),
    Word("bridge", "다리"),
    Word("book", "책"),
    Word("oval", "타원"),
    Word("navy", "남색"),
    Word("gold", "금색"),
    Word("silver", "은색"),
    Word("north", "북쪽"),
    Word("south", "남쪽"),
    Word("five", "다섯"),
    Word("six", "여섯"),
    Word("old", "낡은"),
    Word("new", "새로운"),
    Word("wood", "목재"),
    Word("metal", "금속"),
    Word("maybe", "아마도"),
    Word("none", "없음"),
)
ALL_WORDS = (*SHAPES, *COLORS, *READ_ONLY, *COUNTS, *CORNERS, YES, NO, SMALL, BIG)

SYSTEM_LINES = (
    "",
    "You are a helpful assistant.",
    "You are a helpful visual question answering assistant. "
    "Answer using exactly one letter among a, b, c, or d. No explanation.",
    "Look at the image and answer the question.",
    "당신은 이미지를 보고 질문에 답하는 도우미입니다.",
    "이미지를 보고 알맞은 보기를 고르세요.",
    "Answer with one letter only.",
    "Observe the picture, infer what the question asks for, compare the four options, "
    "then give the final answer as one letter.",
    "그림을 잘 관찰하고, 질문이 묻는 것을 추론한 다음, 최종 답을 a, b, c, d 중 한 글자로 쓰세요.",
)
ENGLISH_INSTRUCTIONS = (
    "",
    "Answer with the letter only.",
    "Answer: one of a, b, c, d.",
    "Reply with a single letter.",
    "Choose one of a, b, c or d.",
)
KOREAN_INSTRUCTIONS = (
    "",
    "정답을 반드시 a, b, c, d 중 하나의 소문자 한 글자로만 출력하세요.",
    "보기에서 하나만 고르세요.",
    "정답:",
    "a, b, c, d 중 하나로 답하세요.",
)

# What quiz prompts are written with, in no data set's wording. Only the tokenizer sees these lines: they keep
# a long system prompt with worked examples short in tokens.
PROMPT_SENTENCES = (
    "You are an expert in visual question answering.",
    "You will see one picture, one question and four options.",
    "Exactly one option is correct; choose the best answer.",
    "Follow these three steps before you answer.",
    "Step 1. Observe: look closely at the picture and describe what it contains.",
    "Step 2. Infer: compare every option with what you observed.",
    "Step 3. Final answer: write only the letter of the correct option.",
    "Think step by step, but output only one letter.",
    "Do not explain your reasoning and do not repeat the question.",
    "If you are not sure, choose the most likely option from the list.",
    "Here are three worked examples. Example 1: Question, Options, Observation, Inference, Final answer.",
    "Now answer the following question in the same way.",
    "Pay attention to the color, the shape, the number, the position, the size and the material of things.",
    "The statement may be true or false. Some things are present, others are missing.",
    "Use lowercase letters. No other text, no punctuation.",
    "Please read the text in the image carefully.",
    "당신은 시각 질의응답 전문가입니다.",
    "당신은 이미지 기반 객관식 문제를 푸는 전문가입니다.",
    "하나의 그림과 하나의 질문, 네 개의 보기가 주어집니다.",
    "주어진 이미지를 자세히 보고 질문에 대한 가장 알맞은 답을 고르세요.",
    "다음 세 단계에 따라 답하세요.",
    "1단계 관찰: 그림에서 보이는 물체와 색, 모양, 개수, 위치를 살펴봅니다.",
    "2단계 추론: 관찰한 내용을 바탕으로 각 보기를 비교합니다.",
    "3단계 최종 답: 정답인 보기의 글자 하나만 출력합니다.",
    "관찰: 이미지의 중앙에 물체가 있습니다.",
    "추론: 관찰한 내용과 일치하는 보기를 선택합니다.",
    "최종 답: ",
    "최종 정답은 반드시 소문자 한 글자여야 합니다.",
    "설명은 필요 없습니다. 다른 말은 쓰지 마세요.",
    "예시 1. 질문과 보기, 관찰, 추론, 최종 답을 차례로 보여 줍니다.",
    "아래 예시를 참고하여 같은 방식으로 답하세요.",
    "다음 이미지에 대한 질문에 답해 주세요.",
    "사진 속 재질, 종류, 글자, 사람, 동물, 장소를 확인하세요.",
    "보기 중에서 틀린 것을 하나씩 지우고 남은 것을 고르세요.",
    "확실하지 않으면 가장 가능성이 높은 보기를 고르세요.",
    "이 그림에 대한 설명으로 옳은 것은 무엇입니까?",
)
