# The same in steps: glm5_next.
# block: GatedMLP("Block", limit="swiglu_limit")
# site: line 8: mlp gated-mlp: gate_proj up_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, x):
        gate = self.gate_proj(x)
        up = self.up_proj(x)
        # Key difference using clamping
        gate = gate.clamp(min=None, max=self.swiglu_limit)
        up = up.clamp(min=-self.swiglu_limit, max=self.swiglu_limit)
        return self.down_proj(self.act_fn(gate) * up)
