"""What is shown while a sweep runs, in a terminal and elsewhere."""

import io
import logging
from typing import Any

import pytest
from rich.console import Console

from vqa.sweep.board import Board, describe_end, describe_seconds, describe_start, short_names
from vqa.sweep.leaderboard import Scores, Standing, describe_ties
from vqa.sweep.worker import Worker
from vqa.sweep.workers.state import WorkerState

NOTHING = Scores(0, None, {}, {})
SCORES = Scores(3, 4.5, {"a": 0.25, "b": 0.5}, {"a": True, "b": True})
STANDINGS = [
    Standing(4, "COMPLETE", 0.375, 8, 4.5, {"lr": 0.00123456, "image": "native"}, SCORES, tied=True),
    Standing(5, "COMPLETE", 0.375, 8, 4.5, {"lr": 0.002, "image": "native"}, SCORES, tied=True),
    Standing(1, "PRUNED", 0.75, 2, 1.0, {"lr": 0.1, "image": "pad_512"}, NOTHING),
    Standing(2, "FAIL", None, None, 1.0, {"lr": 0.2, "image": "native"}, NOTHING, error="OSError: full"),
    Standing(6, "RUNNING", None, 3, None, {"lr": 0.01, "image": "native"}, NOTHING),
]


def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=120, color_system=None), out


def drawn(board: Board) -> str:
    console, out = terminal()
    console.print(board.picture())
    return out.getvalue()


def test_the_table_shows_each_trial_with_scores_and_marks() -> None:
    board = Board("lora", ["lr", "image"], 16, terminal()[0])
    board.show(STANDINGS)
    picture = drawn(board)
    assert "study lora: 4 of 16 trials" in picture
    lines = {line.split()[1]: line for line in picture.splitlines() if line.startswith("│")}
    assert "complete *" in lines["4"]
    assert "0.3750 ± 0.1250" in lines["4"]
    assert "0.00123" in lines["4"]
    assert "complete =" in lines["5"]
    assert "pruned at 2" in lines["1"]
    assert "0.7500" in lines["1"]
    assert "fail" in lines["2"]
    assert "running at 3" in lines["6"]


def test_running_trials_show_even_when_the_table_is_long() -> None:
    many = [Standing(n, "COMPLETE", 0.5, None, 1.0, {}, NOTHING) for n in range(100)]
    board = Board("lora", [], 200, terminal()[0])
    board.show([*many, STANDINGS[-1]])
    assert "running" in drawn(board)
    assert "and 76 more in leaderboard.csv" in drawn(board)


def test_progress_is_a_line_under_the_table() -> None:
    board = Board("lora", ["lr"], 16, terminal()[0])
    board.show(STANDINGS)
    board.progress("trial 6, fold 2 of 3", 5, 20)
    assert drawn(board).splitlines()[-1].startswith("trial 6, fold 2 of 3")
    assert drawn(board).rstrip().endswith("5/20")


def test_a_terminal_gets_the_table_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    console, out = terminal()
    with caplog.at_level(logging.INFO), Board("lora", ["lr"], 16, console) as board:
        board.event("trial 4 starts")
        board.show(STANDINGS)
        assert not board.wants_update  # just drawn
    assert "study lora: 4 of 16 trials" in out.getvalue()
    assert caplog.messages == []


def test_elsewhere_events_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    out = io.StringIO()
    with caplog.at_level(logging.INFO), Board("lora", ["lr"], 16, Console(file=out)) as board:
        board.event("trial 4 starts")
        board.show(STANDINGS)
        board.progress("fold 1", 1, 2)
        assert not board.wants_update
    assert out.getvalue() == ""
    assert caplog.messages == ["trial 4 starts"]


def test_events_in_words() -> None:
    assert describe_start(7, ["lr=0.1", "r=8"], resumed=False) == "trial 7 starts: lr=0.1 r=8"
    assert describe_start(7, ["lr=0.1"], resumed=True) == "trial 7 goes on: lr=0.1"
    complete, _, pruned, failed, _ = STANDINGS
    assert describe_end(complete) == (
        "trial 4 complete: NLL 0.3750 ± 0.1250, accuracy 1.0000 ± 0.0000, 4.5 s"
    )
    assert describe_end(pruned) == "trial 1 pruned at step 2: NLL 0.7500, 1.0 s"
    assert describe_end(failed) == "trial 2 failed: OSError: full"


def test_every_worker_says_what_it_is_at_and_the_title_when_all_is_done() -> None:
    board = Board("lora", ["lr"], 16, terminal()[0])
    workers = [
        WorkerState(0, "gpu1", 10, 6, "fold 2 of 3", 5, 20, 17.25),
        WorkerState(3, "gpu2", 11, None, memory_gib=16.5),
    ]
    board.show(STANDINGS, workers)
    picture = drawn(board)
    # 12 trials are left for two workers; those that ended took 4.5, 4.5, 1 and 1 s
    assert "study lora: 4 of 16 trials, about 16 s left" in picture
    first, second = picture.splitlines()[-2:]
    assert "worker 0 (gpu1) trial 6" in first
    assert "fold 2 of 3" in first
    assert first.rstrip().endswith("5/20 17.25 GiB")
    assert "worker 3 (gpu2) between trials" in second
    assert "16.50 GiB" in second


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (600, "10 min"), (9000, "2.5 h")])
def test_a_span_of_time_is_given_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


def test_the_live_table_fits_a_terminal_of_80_by_24() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24, color_system=None)
    names = ["optimizer.lr", "lora.r", "lora.lora_alpha", "scheduler"]
    many = [Standing(n, "COMPLETE", 0.5, None, 1.0, dict.fromkeys(names, 0.00123), SCORES) for n in range(60)]
    with Board("lora", names, 90, console) as board:
        board.show([*many, STANDINGS[-1]], [WorkerState(0, "gpu1", 10, 6, "fold 2 of 3", 5, 20, 17.25)])
        shown = Console(file=io.StringIO(), width=80, height=24)
        lines = shown.render_lines(board.picture(), pad=False)
        assert len(lines) <= 24
        texts = ["".join(part.text for part in line) for line in lines]
        assert not any("…" in text for text in texts)
        assert any("running" in text for text in texts)
        head = [word.strip() for word in texts[2].strip("┃ ").split("┃")]
        assert head == ["trial", "state", "NLL", "accuracy", "lr", "r"]


def test_searched_keys_lose_their_group_where_that_is_clear() -> None:
    assert short_names(["optimizer.lr", "lora.r", "lora.lora_alpha", "scheduler"]) == [
        *("lr", "r", "alpha", "scheduler")
    ]
    assert short_names(["optimizer.lr", "adapt.lr"]) == ["optimizer.lr", "adapt.lr"]


def test_the_table_of_a_finished_search_shows_no_work() -> None:
    out = io.StringIO()
    with Board("lora", ["lr"], 16, Console(file=out, force_terminal=True, width=80, height=24)) as board:
        board.show(STANDINGS, [WorkerState(0, "gpu1", 10, 6, "fold 2 of 3", 5, 20, 17.25)])
        out.truncate(0)
    assert "fold 2 of 3" not in drawn(board)


def test_the_time_left_is_told_before_the_first_trial_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a trial that has ended, from the pace of the training steps: three folds of 20 steps."""
    clock = [0.0]
    monkeypatch.setattr("vqa.sweep.board.time.monotonic", lambda: clock[0])
    board = Board("lora", ["lr"], 4, terminal()[0], folds=3)
    for done in (1, 2, 5):
        clock[0] = 2.0 * done
        board.show(STANDINGS[-1:], [WorkerState(0, "gpu1", 10, 6, "training", done, 20)])
        assert ("left" in drawn(board)) == (done == 5)
    assert "about 8 min left" in drawn(board)  # 4 trials x 3 folds x 20 steps x 2 s = 480 s


def test_the_table_is_in_korean() -> None:
    board = Board("lora", ["lr"], 16, terminal()[0], lang="ko")
    board.show(STANDINGS, [WorkerState(0, "gpu1", 10, None)])
    picture = drawn(board)
    for text in (
        "스터디 lora: 시도 16개 중 4개",
        "약 33초 남음",
        "중단 (2단계)",
        "완료 *",
        "정확도",
        "작업자 0 (gpu1)",
    ):
        assert text in picture
    board.show(STANDINGS, [WorkerState(0, "gpu1", 10, 6, "training", 5, 20, 17.25)])
    assert "학습" in drawn(board)
    for english in ("trial", "training", "state", "folds", "accuracy", "pruned", "worker"):
        assert english not in picture


def test_the_table_follows_the_work_of_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker is at is read anew when its work is drawn: the table froze after the first trial."""
    clock = [0.0]
    monkeypatch.setattr("vqa.sweep.board.time.monotonic", lambda: clock[0])
    now: list[Any] = [STANDINGS[:1], [WorkerState(0, "gpu1", 10)]]
    worker = Worker.__new__(Worker)
    monkeypatch.setattr("vqa.sweep.worker.read_states", lambda folder: now[1])
    monkeypatch.setattr(Worker, "standings", lambda self: now[0])

    class Nothing:
        folder = None

        def progress(self, text: str, done: int, total: int) -> None:
            clock[0] += 1.0

    worker.shared = worker.state = Nothing()  # type: ignore[assignment]
    with Board("lora", ["lr"], 16, terminal()[0]) as worker.board:
        worker.board.show(*now)
        now[:] = [STANDINGS, [WorkerState(0, "gpu1", 10, 6, "fold 2 of 3", 5, 20)]]
        for done in range(3):
            worker._on_progress("fold 2 of 3", done, 20)
        assert "between trials" not in drawn(worker.board)
        assert "fold 2 of 3" in drawn(worker.board)
        assert len(worker.board.standings) == len(STANDINGS)


def test_the_lines_of_a_sweep_are_in_korean() -> None:
    complete, _, pruned, failed, _ = STANDINGS
    assert describe_start(7, ["lr=0.1"], resumed=False, lang="ko") == "시도 7 시작: lr=0.1"
    end = "시도 4 완료: NLL 0.3750 ± 0.1250, 정확도 1.0000 ± 0.0000, 4.5초"
    assert describe_end(complete, "ko") == end
    assert describe_end(pruned, "ko") == "시도 1 중단 (2단계): NLL 0.7500, 1.0초"
    assert describe_end(failed, "ko") == "시도 2 실패: OSError: full"
    assert describe_ties(STANDINGS, "ko").startswith("다음 시도와는 차이를 구별할 수 없습니다")
