# Trap: up alone is clamped, on its own line: glm5_next has both.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 12: mlp call-alone: up_proj
# site: line 14: mlp call-alone: down_proj
# skip: line 13: mlp: not a gated MLP: `up.clamp(min=-self.swiglu_limit, max=self.swiglu_limit)` stands in between


class Block(nn.Module):
    def forward(self, x):
        gate = self.gate_proj(x)
        up = self.up_proj(x)
        up = up.clamp(min=-self.swiglu_limit, max=self.swiglu_limit)
        return self.down_proj(self.act_fn(gate) * up)
