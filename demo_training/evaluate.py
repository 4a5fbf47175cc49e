"""Measures the accuracy of the served demo model per task and language on the images of the examination.

    python -m demo_training.evaluate --target 127.0.0.1:50051 --questions 1000

It uses gRPC like any client, so that the whole path from image to text is tested.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
import io

from demo_training.examination import Part, digest, examination
from demo_training.trials import Scores, Trial, judge, table
from qwenvl import Client, Error
from qwenvl.inference.v1 import message_pb2 as message_pb


MAX_ANSWER_TOKENS = 256
AT_ONCE = 8


def _conversation(trial: Trial) -> list[message_pb.Message]:
    """The turns of a trial; its images, as PNG, come before the first question."""
    parts = []
    for image in trial.images:
        held = io.BytesIO()
        image.save(held, "PNG")
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


def judgements(client: Client, trials: Sequence[Trial]) -> list[float]:
    """Asks all questions with greedy decoding, some concurrently; returns the score of each answer, 0 to 1.

    Raises:
        Error: A call failed.
    """

    def ask(trial: Trial) -> float:
        answer = client.chat(
            _conversation(trial),
            temperature=0,
            repetition_penalty=1,
            max_tokens=MAX_ANSWER_TOKENS,
        )
        return judge(trial.exchange, answer.text)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, trials))


def evaluate(client: Client, parts: Iterable[Part]) -> Scores:
    """The scores of an examination."""
    return {
        (part.task, part.language): (sum(judgements(client, part.trials)), len(part.trials))
        for part in parts
    }


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Evaluate the demo model of a running service.")
    parser.add_argument("--target", default="127.0.0.1:50051", help="address of the gRPC service")
    parser.add_argument(
        "--questions", type=int, default=1000, help="approximate number of questions"
    )
    arguments = parser.parse_args()
    parts = list(examination(arguments.questions))
    with Client(arguments.target) as client:
        try:
            print(table(evaluate(client, parts)))
        except Error as error:
            raise SystemExit(f"{arguments.target}: {error}") from None
    print(f"\nsha256:{digest(parts)}")


if __name__ == "__main__":
    main()
