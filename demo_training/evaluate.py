"""Examines the served demo model: accuracy per task and language on unseen pictures.

    python -m demo_training.evaluate --target 127.0.0.1:50051 --pictures 1000

Owns the asking, over gRPC as any client does: what is measured is the whole way from a picture to a text. Must not
know networks or training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import io

from demo_training.naming import LANGUAGES
from demo_training.trials import Scores, Trial, judge, table, unseen_trials
from qwenvl import Client, Error
from qwenvl.inference.v1 import message_pb2 as message_pb


MOST_ANSWER_TOKENS = 256
AT_ONCE = 8
# What an examination consists of, and the share of each in it.
SHARES = {
    **dict.fromkeys(("describe", "colour", "shape", "count", "locate", "read:4", "read:6"), 5),
    **dict.fromkeys(("where", "beside", "relation", "compare", "one_of_two", "second_turn"), 2),
    **dict.fromkeys(("colours", "shapes", "count_some", "exists", "is_colour", "locate_all"), 1),
    **dict.fromkeys(("text_colour", "hello", "other"), 1),
}


def _conversation(trial: Trial) -> list[message_pb.Message]:
    """The turns of a trial; its pictures, as PNG, stand before the first question."""
    parts = []
    for picture in trial.pictures:
        held = io.BytesIO()
        picture.save(held, "PNG")
        parts.append(message_pb.Part(image=message_pb.Image(data=held.getvalue())))
    messages = []
    for turn in trial.before:
        parts.append(message_pb.Part(text=turn.question))
        messages.append(message_pb.Message(role=message_pb.ROLE_USER, parts=parts))
        parts = [message_pb.Part(text=turn.answer)]
        messages.append(message_pb.Message(role=message_pb.ROLE_ASSISTANT, parts=parts))
        parts = []
    parts.append(message_pb.Part(text=trial.exchange.question))
    return [*messages, message_pb.Message(role=message_pb.ROLE_USER, parts=parts)]


def examine(client: Client, trials: Sequence[Trial]) -> float:
    """Asks all of them greedily, some at once; returns the sum of the judgements.

    Raises:
        Error: A call failed.
    """

    def ask(trial: Trial) -> float:
        answer = client.chat(
            _conversation(trial), temperature=0, repetition_penalty=1, max_tokens=MOST_ANSWER_TOKENS
        )
        return judge(trial.exchange, answer.text)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(ask, trials))


def evaluate(client: Client, pictures: int) -> Scores:
    """Examines every task in both languages; every question has pictures of its own."""
    scores: Scores = {}
    unit = pictures / sum(SHARES.values()) / len(LANGUAGES)
    for task, share in SHARES.items():
        number = max(1, round(unit * share))
        for language in LANGUAGES:
            trials = unseen_trials(task, language, number)
            scores[task, language] = examine(client, trials), number
    return scores


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Examine the demo model that a service serves.")
    parser.add_argument("--target", default="127.0.0.1:50051", help="address of the gRPC service")
    parser.add_argument("--pictures", type=int, default=1000, help="about how many to show")
    arguments = parser.parse_args()
    with Client(arguments.target) as client:
        try:
            print(table(evaluate(client, arguments.pictures)))
        except Error as error:
            raise SystemExit(f"{arguments.target}: {error}") from None


if __name__ == "__main__":
    main()
