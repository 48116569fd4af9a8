#!/usr/bin/env python3
"""Writes the PrometheusRule from manifests/prometheus/tenantry.rules.yaml; with --check it says whether it is up to date."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
RULES = HERE.parent / "prometheus" / "tenantry.rules.yaml"
MADE = HERE / "overlays" / "prometheus-operator" / "prometheusrule.yaml"

HEAD = """\
# Made from manifests/prometheus/tenantry.rules.yaml by manifests/kubernetes/generate.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tenantry
  labels:
    app.kubernetes.io/name: tenantry
spec:
"""


def main():
    lines = RULES.read_text(encoding="utf-8").splitlines()
    groups = lines[lines.index("groups:"):]
    made = HEAD + "".join(f"  {line}\n" if line else "\n" for line in groups)
    if MADE.exists() and MADE.read_text(encoding="utf-8") == made:
        return
    if "--check" in sys.argv[1:]:
        sys.exit(f"{MADE.name} is not as generate.py makes it. Run it: python3 manifests/kubernetes/generate.py")
    MADE.write_text(made, encoding="utf-8")
    print(f"wrote {MADE.name}")


if __name__ == "__main__":
    main()
