"""Turns generated tokens into the events of an answer, with a pipeline of stages for each answer (`pipeline.py`).

The stages are detokenise, stop strings, reasoning, tool calls and boxes. To add one, write a module with a class that
has `may_end`, `counts_tokens` and `push(piece)` (`stage.py`), and insert it where `build_pipeline` composes the stages.
A stop condition has `may_end = True`, and sets `trigger` and `last` of the piece that ends the answer. A parser moves
its findings from `text` to a separate field of `Piece`; `Answer` puts it into the events. What an answer begins with is
known from its prompt, the notation of tool calls from the family. The property tests in `tests/text/output/` show that
the split of an answer into pieces does not matter.
"""
