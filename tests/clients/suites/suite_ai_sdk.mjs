// The Vercel AI SDK: generateText, streamText, generateObject and images, with both of its providers for this service.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.env.QWENVL_URL}/v1`;
const picture = readFileSync(process.env.QWENVL_IMAGE);
const openai = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({
  baseURL,
  apiKey: "none",
  name: "qwen-vl",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const MODELS = {
  "openai, responses": openai("qwen-vl"),
  "openai, chat": openai.chat("qwen-vl"),
  "openai-compatible": compatible("qwen-vl"),
};
const asked = [
  {
    role: "user",
    content: [
      { type: "image", image: picture },
      { type: "text", text: "What is in this picture?" },
    ],
  },
];
const settings = { temperature: 0, maxOutputTokens: 64, maxRetries: 0 };

for (const [name, model] of Object.entries(MODELS)) {
  test(`${name}: generateText and streamText with an image`, async () => {
    const whole = await generateText({ model, messages: asked, ...settings });
    assert.match(whole.text, /red circle/i);
    assert.equal(whole.finishReason, "stop");
    assert.ok(whole.usage.inputTokens > 0 && whole.usage.outputTokens > 0);
    const stream = streamText({ model, messages: asked, ...settings });
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    assert.equal(text, whole.text);
    assert.equal(await stream.finishReason, "stop");
    assert.ok((await stream.usage).outputTokens > 0);
  });

  test(`${name}: generateObject`, async () => {
    const schema = z.object({
      colour: z.enum(["red", "green", "blue"]),
      shape: z.enum(["circle", "square"]),
    });
    const { object } = await generateObject({ model, messages: asked, schema, ...settings });
    assert.ok(schema.safeParse(object).success);
  });

  test(`${name}: a tool is called, and its result is sent back`, async () => {
    let painted = 0;
    const paint = tool({
      description: "Paints the wall.",
      inputSchema: z.object({ colour: z.enum(["red", "blue"]) }),
      execute: async ({ colour }) => {
        painted += 1;
        return `The wall is ${colour}.`;
      },
    });
    const result = await generateText({
      model,
      prompt: "Paint the wall red.",
      tools: { paint },
      toolChoice: "required",
      prepareStep: ({ stepNumber }) => (stepNumber === 0 ? {} : { toolChoice: "none" }),
      stopWhen: stepCountIs(2),
      ...settings,
    });
    assert.equal(painted, 1);
    assert.equal(result.steps.length, 2);
  });

  test(`${name}: a conversation goes on`, async () => {
    const first = await generateText({ model, messages: asked, ...settings });
    const messages = [
      ...asked,
      ...first.response.messages,
      { role: "user", content: "What colour is it?" },
    ];
    const second = await generateText({ model, messages, ...settings });
    assert.match(second.text, /red/i);
  });

  test(`${name}: errors are the service's`, async () => {
    await assert.rejects(
      generateText({ model, messages: asked, ...settings, topP: 7 }),
      (error) => error.statusCode === 400 && /top_p/.test(error.message),
    );
  });
}
