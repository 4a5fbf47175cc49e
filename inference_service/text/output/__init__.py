"""Turns generated tokens into the events of an answer, with a pipeline of stages for each answer (`pipeline.py`).

To add a stop condition, a tool-call format or a reasoning parser, write one module here with a class that has
`push(piece)` (`stage.py`), and append it where `build_pipeline` composes the stages: detokenise, stop strings,
reasoning, tool calls, boxes. A stop condition sets `trigger` and `last` of a piece, and requires
`token_by_token`. A parser moves its findings from `text` to a separate field of `Piece`; `Answer` puts it into the
events. The property tests in `tests/text/output/` show that the split of an answer into pieces does not matter.
"""
