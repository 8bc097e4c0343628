# Calls that stand around the last layer run after all: gate and up of an MLP with a multiplier, falcon_h1.
# block: SharedInput("Block", groups=(("up_proj", "gate_proj"),))
# site: line 8: linear shared-input: up_proj gate_proj


class Block(nn.Module):
    def forward(self, x):
        up, gate = self.apply_shared(x, self.up_proj, self.gate_proj)
        y = up * self.act_fn(gate * self.gate_multiplier)
        y = self.down_proj(y) * self.down_multiplier
        return y
