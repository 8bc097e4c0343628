# Trap: parameters of these names, multiplied as matrices: inkling's shared experts, llama4's experts.
# block: GatedMLP("Block")
# skip: mlp: absent: `self.gate_proj` or `self.up_proj` or `self.down_proj` is never called


class Block(nn.Module):
    def forward(self, x):
        gate = torch.bmm(x, self.gate_proj)
        up = torch.bmm(x, self.up_proj)
        return torch.bmm(self.act_fn(gate) * up, self.down_proj)
