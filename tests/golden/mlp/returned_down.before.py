# One expression, returned: qwen2_5_vl's vision tower, and llama before 4.48.
# block: GatedMLP("Block")
# site: line 8: mlp gated-mlp: gate_proj act_fn up_proj down_proj


class Block(nn.Module):
    def forward(self, hidden_state):
        return self.down_proj(self.act_fn(self.gate_proj(hidden_state)) * self.up_proj(hidden_state))
