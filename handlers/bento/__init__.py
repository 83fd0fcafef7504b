"""BentoML as a host: one service with the engine, the native API and the OpenAI routes in one process."""
