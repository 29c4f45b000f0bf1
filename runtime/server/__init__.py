"""Bundles as an HTTP service, on starlette and uvicorn (extra ``serve``): OpenAI's API and a generic one."""
