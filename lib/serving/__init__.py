"""A server of compressed models: text-generation-inference's interface and OpenAI's over the one generation loop."""
