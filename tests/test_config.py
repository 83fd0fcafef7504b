"""Configurations hold one name for one thing, whichever of vLLM's names is given."""

from __future__ import annotations

import pytest

from paged_backend import ConfigError, EngineConfig


@pytest.mark.parametrize(("given", "meant"), [("half", "float16"), ("float", "float32"), ("bfloat16", "bfloat16")])
def test_other_names_of_dtypes(given: str, meant: str) -> None:
    config = EngineConfig.from_args(dtype=given, kv_cache_dtype=given)
    assert (config.model.dtype, config.cache.kv_cache_dtype) == (meant, meant)
    assert config == EngineConfig.from_args(dtype=meant, kv_cache_dtype=meant)
    assert EngineConfig.from_args(config.to_args()) == config


def test_cpp_is_not_for_gpus() -> None:
    with pytest.raises(ConfigError, match="kernel_backend cpu cannot compute on device cuda: choose"):
        EngineConfig.from_args(device="cuda", kernel_backend="cpu")
    assert EngineConfig.from_args(device="cuda", kernel_backend="triton").executor.device == "cuda"


@pytest.mark.parametrize("given", ["fp8", "fp8_e4m3"])
def test_names_of_fp8(given: str) -> None:
    config = EngineConfig.from_args(kv_cache_dtype=given)
    assert config.cache.kv_cache_dtype == "fp8_e4m3"
    assert EngineConfig.from_args(config.to_args()) == config


@pytest.mark.parametrize("name", ["dtype", "kv_cache_dtype"])
@pytest.mark.parametrize("value", ["Half", "double", "", None, ["half"], {}, 16])
def test_what_is_no_dtype_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be one of auto, float32"):
        EngineConfig.from_args({name: value})


def test_sizes_to_record() -> None:
    for asked in ([8, 1, 8], ("8", "1"), [1, "8"]):
        assert EngineConfig.from_args(cudagraph_capture_sizes=asked).executor.cudagraph_capture_sizes == (1, 8)
    for wrong in ([0], "x", [1.5], [True]):
        with pytest.raises(ConfigError, match="cudagraph_capture_sizes"):
            EngineConfig.from_args(cudagraph_capture_sizes=wrong)
    with pytest.raises(ConfigError, match="async_scheduling must be true or false"):
        EngineConfig.from_args(async_scheduling="yes")
