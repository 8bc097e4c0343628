# No gate, in one expression: arcee, nemotron.
# block: MLP("Block", "up_proj", "down_proj", "act_fn")
# site: line 8: mlp ungated-mlp: up_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, x):
        return self.apply_mlp(x)
