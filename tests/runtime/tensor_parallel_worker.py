"""What each of two processes of the tensor-parallel test runs: a model split by transformers' own plan.

transformers cuts the weights and sets a ``forward`` on each layer that joins the parts again.
"""

from __future__ import annotations

import os
import sys

import peft
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

import patchkit
from patchkit.testing import compare_runs, run, tiny_inputs, tiny_model

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    assert model.model.layers[0].self_attn.q_proj.weight.to_local().shape == (32, 64)
    torch.manual_seed(0)
    # PEFT 0.21 cannot train adapters on the layers that transformers 5.23 cuts along their input (o and down).
    targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).train()
    inputs = tiny_inputs("llama", tiny_model("llama"))
    expected = run(model, inputs)
    report = patchkit.apply(model)
    assert report.counts == {"upstream": 6}, str(report)
    assert all("forward was replaced on the instance" in row.reason for row in report.rows), str(report)
    findings = compare_runs(expected, run(model, inputs))
    assert findings.passed, (findings.problems, str(findings.worst))
    dist.destroy_process_group()
