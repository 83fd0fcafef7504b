"""Outputs of a random model under many schemas, by an implementation of JSON Schema that knows nothing of grammars."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from paged_backend import LLM, SamplingParams
from paged_backend.sampling_params import StructuredOutputsParams
from tests.structured.schemas import many_schemas
from tests.tiny_models import make_tiny_model

NUM_SCHEMAS = 200


_ALL = pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(900)])


@pytest.mark.parametrize("per_schema", [1, _ALL], ids=["one each", "ten each"])
def test_outputs_are_valid_or_cut_off(per_schema: int, tmp_path: Path) -> None:
    schemas = many_schemas(NUM_SCHEMAS)
    prompts, params, own = [], [], []
    for number, schema in enumerate(schemas):
        Draft202012Validator.check_schema(schema)
        for sample in range(per_schema):
            structure = StructuredOutputsParams(json=schema, disable_any_whitespace=(number + sample) % 4 > 0)
            prompts.append([2 + sample, 3 + number])
            params.append(SamplingParams(structured_outputs=structure, seed=1000 * number + sample, max_tokens=250))
            own.append(schema)
    folder = make_tiny_model("llama", tmp_path, tokenizer=True, max_position_embeddings=320)
    with LLM(str(folder), max_num_seqs=64) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    reasons: Counter[str | None] = Counter()
    for schema, output in zip(own, outputs, strict=True):
        sample = output.outputs[0]
        reasons[sample.finish_reason] += 1
        if sample.finish_reason == "stop":
            Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
                json.loads(sample.text)
            )
    assert set(reasons) <= {"stop", "length"}
    assert reasons["stop"] >= 0.8 * len(outputs), reasons
