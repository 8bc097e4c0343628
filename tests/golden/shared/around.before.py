# Calls that stand around the last layer run after all: gate and up of an MLP with a multiplier, falcon_h1.
# block: SharedInput("Block", groups=(("up_proj", "gate_proj"),))
# site: line 8: linear shared-input: up_proj gate_proj


class Block(nn.Module):
    def forward(self, x):
        y = self.up_proj(x) * self.act_fn(self.gate_proj(x) * self.gate_multiplier)
        y = self.down_proj(y) * self.down_multiplier
        return y
