#!/usr/bin/env bash
# Two environments of their own under .bench/ for the comparison with TRL: the current release for SFT and reward
# models, and 1.12.0, the last one that has a PPO trainer.
#
# torch comes first and alone: TRL asks for "torch>=2.0", which a bare `pip install trl` answers with the newest CUDA
# build. The second step is tried dry before it is done, and stops if it would touch torch or bring CUDA wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
torch=${TORCH_VERSION:-2.13.0}
transformers=${TRANSFORMERS_VERSION:-5.23.0}

for release in 1.16.0 1.12.0; do
    home=.bench/trl-${release%.*}
    [ -x "$home/bin/python" ] || "$python" -m venv "$home"
    "$home/bin/pip" install --quiet "torch==$torch"
    # Read the plan before carrying it out.
    plan=$("$home/bin/pip" install --dry-run "trl==$release" "transformers==$transformers" "torch==$torch" | grep "Would install" || true)
    if grep -qE "nvidia|cuda|triton| torch-" <<< "$plan"; then
        echo "trl $release would replace torch $torch or bring CUDA: $plan" >&2
        exit 1
    fi
    "$home/bin/pip" install --quiet "trl==$release" "transformers==$transformers" "torch==$torch"
    "$home/bin/python" - <<'PYTHON'
from importlib.metadata import version

names = ("trl", "torch", "transformers", "accelerate", "datasets", "tokenizers")
print(", ".join(f"{name} {version(name)}" for name in names))
PYTHON
done
