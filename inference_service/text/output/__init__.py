"""From generated tokens to the events of an answer: a pipeline of stages for each answer (`pipeline.py`).

To add a stop condition, a tool-call format or a reasoning parser, write one module here with a class that has
`push(piece)` (`stage.py`), and append it where `build_pipeline` composes the stages: detokenise, stop strings,
reasoning, tool calls, boxes. A stop condition sets `trigger` and `last` of a piece, and counts for
`token_by_token`. A parser moves what it finds from `text` to a field of its own in `Piece`; `Answer` puts it into the
events. The property tests in `tests/text/output/` show that cutting an answer differently changes nothing.
"""
