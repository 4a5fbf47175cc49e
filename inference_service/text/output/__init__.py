"""Turns generated tokens into the events of an answer, with a pipeline of stages for each answer (`pipeline.py`).

The stages are detokenise, stop strings and boxes. To add one, write a module with a class that has `may_end` and
`push(piece)` (`stage.py`), and insert it where `build_pipeline` composes the stages. A stop condition has
`may_end = True`, and sets `trigger` and `last` of the piece that ends the answer. A parser moves its findings from
`text` to a separate field of `Piece`; `Answer` puts it into the events. A parser of reasoning or tool calls belongs
after the stop strings and before the boxes; a family names its format, as it does that of boxes. The property tests in
`tests/text/output/` show that the split of an answer into pieces does not matter.
"""
