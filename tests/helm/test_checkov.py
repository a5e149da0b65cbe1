"""What checkov finds in the default rendering is mended, or answered where it is found."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from .charts import RELEASE, helm
from .generated import CHART, ROOT

CHECKOV = ROOT / ".venv/checkov/bin/checkov"
ANSWERS = re.findall(r"^\| ((?:CKV\w+(?: and )?)+)", (CHART / "README.md").read_text(), re.MULTILINE)
ANSWERED = {check for answer in ANSWERS for check in answer.split(" and ")}


def findings(directory: Path, *arguments: str) -> dict[str, list[dict]]:
    manifests = directory / "manifests.yaml"
    manifests.write_text(helm("template", RELEASE, CHART, *arguments).stdout)
    assert CHECKOV.exists(), ".venv/checkov is missing: `make tools`"
    done = subprocess.run(
        [CHECKOV, "--file", manifests, "--framework", "kubernetes", "--output", "json", "--skip-download"],
        # It would ask its vendor for descriptions, and look for settings at home.
        env={"PATH": os.environ["PATH"], "HOME": str(directory)},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    return json.loads(done.stdout)["results"]


def checks(found: list[dict]) -> set[str]:
    return {finding["check_id"] for finding in found}


def test_nothing_is_found_that_is_not_answered(tmp_path: Path) -> None:
    found = findings(tmp_path, "--namespace", "prod")
    assert len(found["passed_checks"]) > 100
    assert found["failed_checks"] == []
    assert checks(found["skipped_checks"]) == ANSWERED - {"CKV_K8S_21"}
    for finding in found["skipped_checks"]:
        assert len(finding["check_result"]["suppress_comment"]) > 20


def test_it_finds_what_is_there(tmp_path: Path) -> None:
    # No namespace, no NetworkPolicy, a root that can be written to.
    worse = ("--set", "networkPolicy.enabled=false,securityContext.readOnlyRootFilesystem=false")
    failed = findings(tmp_path, *worse)["failed_checks"]
    assert checks(failed) == {"CKV_K8S_21", "CKV2_K8S_6", "CKV_K8S_22"}
