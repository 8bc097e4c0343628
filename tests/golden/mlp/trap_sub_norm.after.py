# Trap: a norm before down: bitnet.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 11: mlp call-alone: up_proj
# site: line 11: mlp call-alone: down_proj
# skip: line 11: mlp: not a gated MLP: `self.ffn_sub_norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x))` stands in between


class Block(nn.Module):
    def forward(self, x):
        down_proj = self.apply_linear(self.down_proj, self.ffn_sub_norm(self.act_fn(self.apply_linear(self.gate_proj, x)) * self.apply_linear(self.up_proj, x)))
        return down_proj
