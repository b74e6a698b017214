"""A simulator of inference engines and providers that speaks the OpenAI API, and a starter for a real llama.cpp."""
