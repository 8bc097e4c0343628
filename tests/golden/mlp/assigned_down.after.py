# One expression, assigned and returned: llama, mistral, qwen2, gemma, gemma2, gemma3, pixtral.
# block: GatedMLP("Block")
# site: line 8: mlp gated-mlp: gate_proj act_fn up_proj down_proj


class Block(nn.Module):
    def forward(self, x):
        down_proj = self.apply_mlp(x)
        return down_proj
