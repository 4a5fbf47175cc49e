"""The interactive conversation of `qwenvl chat`: lines, commands and completion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import glob
import os
from pathlib import Path
import re
import sys

from inference_service.commands.dialogue import Dialogue
from inference_service.commands.draw import DrawError, check_drawing
from inference_service.commands.image_words import Image, ImageWordError, read_image_words
from inference_service.commands.sampling_words import NAMES, read_sampling
from qwenvl import Error


HELP = (
    "/image FILE attaches an image to the next question, /new starts a new conversation, /help lists all commands,"
    " Ctrl-C stops an answer, Ctrl-D or /exit ends."
)
_COMMANDS = {
    "/image FILE...": "attach images to the next question: files, file:// or http(s) URLs; Tab completes",
    "/new": "start a new conversation",
    "/model [NAME]": "list the served models, or choose one",
    "/set [NAME VALUE]": "list the settings, or change one: temperature 0, max_tokens 100, system TEXT, draw FILE;"
    " the value none unsets it",
    "/help": "this list",
    "/exit": "end, as Ctrl-D does",
    '"""': "begin and end a question of several lines; a line that ends with \\ goes on, too",
}
_WORD = re.compile(r"/[a-z]+")
_BLOCK = '"""'
_OTHER_SETTINGS = ("system", "draw", "font")

Reason = Callable[[Exception], str]


class _Ended(Exception):  # noqa: N818 - no error
    """The user has ended the conversation."""


def converse(dialogue: Dialogue, images: Sequence[Image], reason: Reason) -> int:
    """Reads questions and commands until the end of input; an error ends a question, not the conversation.

    Args:
        dialogue: The conversation.
        images: Images of the first question.
        reason: Makes an error a line of text.

    Returns:
        The exit status.

    Raises:
        Error: The service is unreachable, or refuses the key.
    """
    dialogue.statistics = True
    _complete_words()
    _say(f"model {dialogue.model or dialogue.models()[0].name}; {HELP}")
    conversation = _Conversation(dialogue, reason)
    for image in images:
        conversation.attach(image)
    while True:
        try:
            text = _read_question()
            conversation.handle(text)
        except (EOFError, _Ended):
            print(flush=True)
            return 0
        except KeyboardInterrupt:
            _say("\nCtrl-D or /exit ends.")


class _Conversation:
    def __init__(self, dialogue: Dialogue, reason: Reason) -> None:
        self._dialogue = dialogue
        self._reason = reason
        self._actions: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/new": self._new,
            "/model": self._model,
            "/set": self._set,
            "/help": self._help,
            "/exit": self._exit,
            "/quit": self._exit,
            "/bye": self._exit,
        }

    def handle(self, text: str) -> None:
        """Runs a command or asks a question."""
        word, rest = [*text.split(maxsplit=1), "", ""][:2]
        try:
            if action := self._actions.get(word.lower()):
                action(rest.strip())
            elif _WORD.fullmatch(word):
                _say(f"unknown command {word}; /help lists the commands")
            elif text.strip():
                self._dialogue.ask(text)
        except (Error, DrawError, ImageWordError, OSError) as error:
            _say(self._reason(error))

    def attach(self, image: Image) -> None:
        """Attaches an image and says so, or why not."""
        try:
            _say(self._dialogue.attach_checked(image))
        except (Error, ImageWordError, OSError) as error:
            _say(f"not attached: {self._reason(error)}")

    def _image(self, rest: str) -> None:
        for image in read_image_words(rest):
            self.attach(image)

    def _new(self, rest: str) -> None:
        del rest
        self._dialogue.restart()
        _say("new conversation")

    def _model(self, name: str) -> None:
        names = [model.name for model in self._dialogue.models()]
        if name and name not in names:
            _say(f"{name} is not served here; served: {' '.join(names)}")
            return
        self._dialogue.model = name or self._dialogue.model
        chosen = self._dialogue.model or names[0]
        for served in names:
            _say(f"{'*' if served == chosen else ' '} {served}")

    def _set(self, rest: str) -> None:
        name, value = [*re.split(r"[ =]+", rest, maxsplit=1), ""][:2]
        name = name.lstrip("-").replace("-", "_").lower()
        if not name:
            self._show_settings()
        elif name not in (*NAMES, *_OTHER_SETTINGS):
            _say(f"unknown setting {name}; there are: {' '.join((*NAMES, *_OTHER_SETTINGS))}")
        elif not value:
            _say(f"name a value: /set {name} VALUE, or none")
        else:
            self._change(name, None if value == "none" else value)

    def _change(self, name: str, value: str | None) -> None:
        dialogue = self._dialogue
        if name in _OTHER_SETTINGS:
            is_file = value is not None and name != "system"
            chosen = Path(str(value)).expanduser() if is_file else value
            if isinstance(chosen, Path):
                check_drawing(**{name: chosen})
            setattr(dialogue, name, chosen)
            if name == "system":
                _say("the system message holds from the next conversation on: /new starts one")
        elif value is None:
            dialogue.sampling.pop(name, None)
        else:
            try:
                dialogue.sampling[name] = read_sampling(name, value)
            except ValueError as error:
                _say(str(error))
                return
        _say(f"{name} {'none' if value is None else value}")

    def _show_settings(self) -> None:
        for name in (*NAMES, *_OTHER_SETTINGS):
            value = getattr(self._dialogue, name, None) if name in _OTHER_SETTINGS else None
            value = self._dialogue.sampling.get(name, value)
            _say(f"{name} {'none' if value is None else value}")

    def _help(self, rest: str) -> None:
        del rest
        for command, meaning in _COMMANDS.items():
            _say(f"{command:<18} {meaning}")

    def _exit(self, rest: str) -> None:
        del rest
        raise _Ended


def _say(line: str) -> None:
    """Prints a line that is no answer."""
    print(line, file=sys.stderr, flush=True)


def _read_question() -> str:
    """One question or command: a line, lines that end with a backslash, or a block between triple quotes."""
    line = input("> ")
    if line.lstrip().startswith(_BLOCK):
        return "\n".join(_block(line.lstrip()[len(_BLOCK) :])).strip()
    lines = [line]
    while lines[-1].endswith("\\") and not lines[0].startswith("/"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(". "))
    return "\n".join(lines).strip()


def _block(line: str) -> Iterator[str]:
    while not line.rstrip().endswith(_BLOCK):
        yield line
        try:
            line = input(". ")
        except EOFError:  # a block without its end is what was written
            return
    yield line.rstrip()[: -len(_BLOCK)]


def _complete_words() -> None:
    """History, and completion of commands and of files after `/image`."""
    try:
        import readline  # noqa: PLC0415 - not on every platform
    except ImportError:
        return
    readline.set_completer(lambda text, state: next(iter(_completions(text)[state:]), None))
    readline.set_completer_delims("")  # the whole line is completed
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def _completions(line: str) -> list[str]:
    """What a line may become."""
    word, space, rest = line.partition(" ")
    if not space:
        words = (command.split(" ")[0] for command in _COMMANDS if command.startswith("/"))
        return [f"{word} " for word in words if word.startswith(line)] if line else []
    if word != "/image":
        return []
    pattern = glob.escape(os.path.expanduser(rest)) + "*"  # noqa: PTH111 - keeps a slash at the end
    return [
        f"{word} {path}{os.sep if Path(path).is_dir() else ''}"
        for path in sorted(glob.glob(pattern))  # noqa: PTH207 - as typed, also relative
    ]
