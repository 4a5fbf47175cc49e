// The gRPC service from TypeScript: the code that protoc-gen-es makes of the contract, and Connect's gRPC transport.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

const made = pathToFileURL(`${process.env.QWENVL_STUBS}/qwenvl/inference/v1/`);
const { ChatService } = await import(new URL("chat_service_pb.js", made));
const { ModelService } = await import(new URL("model_service_pb.js", made));
const { Role } = await import(new URL("message_pb.js", made));
const { FinishReason } = await import(new URL("usage_pb.js", made));

const transport = createGrpcTransport({ baseUrl: `http://${process.env.QWENVL_GRPC_TARGET}` });
const chat = createClient(ChatService, transport);
const image = { source: { case: "data", value: readFileSync(process.env.QWENVL_IMAGE) } };
const spec = {
  model: "qwen-vl",
  messages: [
    {
      role: Role.USER,
      parts: [
        { kind: { case: "image", value: image } },
        { kind: { case: "text", value: "What is in this picture?" } },
      ],
    },
  ],
  sampling: { temperature: 0, maxTokens: 32 },
};

test("a question about an image", async () => {
  let trailers;
  const answer = await chat.createChatCompletion({ spec }, { onTrailer: (all) => (trailers = all) });
  assert.match(answer.choices[0].text, /red circle/i);
  assert.equal(answer.choices[0].finishReason, FinishReason.STOP);
  assert.ok(trailers.get("endpoint-load-metrics-bin"));
});

test("the same as a stream", async () => {
  const kinds = [];
  let text = "";
  for await (const response of chat.streamChatCompletion({ spec })) {
    kinds.push(response.event.case);
    if (response.event.case === "delta") text += response.event.value.text;
  }
  assert.match(text, /red circle/i);
  assert.equal(kinds[0], "started");
  assert.equal(kinds.at(-1), "usage");
});

test("models, and an error with its details", async () => {
  const { models } = await createClient(ModelService, transport).listModels({});
  assert.ok(models.some((model) => model.name === "qwen-vl"));
  const wrong = { ...spec, sampling: { temperature: 9 } };
  await assert.rejects(chat.createChatCompletion({ spec: wrong }), (error) => {
    const problem = ConnectError.from(error);
    return problem.code === Code.InvalidArgument && problem.details.length >= 2;
  });
});
