# Dropout after the down projection is outside of the MLP: seed_oss.
# block: GatedMLP("Block")
# site: line 8: mlp gated-mlp: gate_proj act_fn up_proj down_proj


class Block(nn.Module):
    def forward(self, x):
        down_proj = self.apply_mlp(x)
        down_proj = nn.functional.dropout(down_proj, p=self.residual_dropout, training=self.training)
        return down_proj
