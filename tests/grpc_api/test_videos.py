"""Videos over gRPC: from frames to spans, what they cost, and what is refused."""

from __future__ import annotations

from dataclasses import replace

from inference_service.backend.served_model import ServedModel
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.grpc_api.asking import image_part, refusal, spec_of
from tests.grpc_api.conftest import OpenService, Service
from tests.support.images import COLOURS, draw


def video(*frames: bytes, fps: float | None = None) -> message_pb.Part:
    return message_pb.Part(
        video=message_pb.Video(frames=[message_pb.Image(data=data) for data in frames], fps=fps)
    )


FRAMES = [draw(colour, "circle", size=(96, 64)).png for colour in list(COLOURS)[:5]]


async def test_frames_reach_the_engine(service: Service) -> None:
    """The model of these tests is a Qwen3-VL: pairs of frames, each behind its time."""
    spec = spec_of("a", video(*FRAMES, fps=1), image_part(FRAMES[0]), "b")
    response = await service.create(spec)
    [request] = service.engine.requests
    pairs, image = request.images[:3], request.images[3]
    assert [span.frames for span in pairs] == [2, 2, 1]
    assert len({span.key for span in request.images}) == 4
    assert image.frames == 1
    assert sum(span.pixel_bytes for span in request.images) == len(b"".join(service.engine.pixels))
    text = service.model.tokenizer.decode(request.prompt_token_ids)
    assert "a<0.5 seconds><2.5 seconds><4.0 seconds>b" in text
    tokens = {item.modality: item.tokens for item in response.usage.prompt_details}
    assert tokens[usage_pb.MODALITY_VIDEO] == sum(span.num_tokens for span in pairs)
    assert tokens[usage_pb.MODALITY_IMAGE] == image.num_tokens
    assert sum(tokens.values()) == response.usage.prompt_tokens
    assert len(response.started.images) == 1  # images only


async def test_a_rate_is_two_frames_a_second_unless_said(service: Service) -> None:
    await service.create(spec_of(video(*FRAMES[:4])))
    text = service.model.tokenizer.decode(service.engine.requests[0].prompt_token_ids)
    assert "<0.2 seconds><1.2 seconds>" in text


async def test_the_model_reports_that_it_takes_videos(service: Service) -> None:
    answer = await service.models.GetModel(model_pb.GetModelRequest(name="echo"))
    assert usage_pb.MODALITY_VIDEO in answer.model.input_modalities


async def test_refusals(open_service: OpenService) -> None:
    service = await open_service(max_video_frames=4)
    got = await refusal(service.create(spec_of(video(*FRAMES))))
    assert (got.info.reason, got.field) == ("TOO_MANY_IMAGES", "spec.messages[0].parts[0].video")
    odd = draw("red", "star", size=(64, 96)).png
    got = await refusal(service.create(spec_of(video(FRAMES[0], odd))))
    path = "spec.messages[0].parts[0].video.frames[1]"
    assert (got.info.reason, got.field) == ("INVALID_IMAGE", path)
    got = await refusal(service.create(spec_of(video(FRAMES[0], b"no image"))))
    assert (got.info.reason, got.field) == ("INVALID_IMAGE", path)
    assert not service.engine.requests
    assert (await service.create(spec_of(video(*FRAMES[:4])))).choices


async def test_what_no_encoder_holds(open_service: OpenService, model: ServedModel) -> None:
    """Pairs of frames are encoded apart: only one that is too large alone is refused."""
    [pair] = (await _counted(open_service, FRAMES[:2])).values()
    assert await _counted(open_service, FRAMES[:4], encoder_cache_tokens=pair)
    service = await open_service(encoder_cache_tokens=pair - 1)
    for part, path in ((video(*FRAMES[:2]), "video"), (image_part(FRAMES[0]), "image")):
        got = await refusal(service.create(spec_of(part)))
        assert (got.info.reason, got.info.metadata["max_tokens"]) == (
            "IMAGE_TOO_LARGE",
            str(pair - 1),
        )
        assert got.field == f"spec.messages[0].parts[0].{path}"
        assert f"The {'video' if path == 'video' else 'image'} has" in got.message
    assert not service.engine.requests


async def _counted(
    open_service: OpenService, frames: list[bytes], **settings: int
) -> dict[int, int]:
    """Tokens of each pair of frames, by its place."""
    service = await open_service(**settings)
    await service.create(spec_of(video(*frames)))
    return {span.start: span.num_tokens for span in service.engine.requests[0].images}


async def test_a_model_without_videos(open_service: OpenService, model: ServedModel) -> None:
    service = await open_service(served=replace(model, spec=replace(model.spec, video=None)))
    got = await refusal(service.create(spec_of(video(*FRAMES))))
    assert got.info.reason == "UNSUPPORTED_PARAMETER"
