# An activation that runs between the two, and may draw.
# block: SharedInput("Block", groups=(("gate_proj", "up_proj"),))
# skip: line 8: linear: not together: `self.act_fn(self.gate_proj(x))` stands between and may run another module, whose dropout draws random numbers


class Block(nn.Module):
    def forward(self, x):
        return self.down_proj(self.ffn_sub_norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))
