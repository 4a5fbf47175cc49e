"""The settings in effect of the fake service: those of the request, and defaults that no request would set."""

from __future__ import annotations

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb


DEFAULTS = sampling_pb.SamplingOptions(
    temperature=0.7,
    top_p=0.8,
    top_k=20,
    min_p=0.0,
    repetition_penalty=1.05,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=7,
    max_tokens=512,
    min_tokens=0,
    ignore_eos=False,
)


def effective_settings(
    spec: chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec,
) -> generation_pb.EffectiveSettings:
    sampling = sampling_pb.SamplingOptions()
    sampling.CopyFrom(DEFAULTS)
    sampling.MergeFrom(spec.sampling)
    return generation_pb.EffectiveSettings(sampling=sampling, stop=spec.stop, n=1)
