# The same in a gated one, with another order of conditions and more of them.
# block: GatedMLP("Block", "wi_0", "wi_1", "wo", activation="act")
# site: line 8: mlp gated-mlp: wi_0 act wi_1 wo


class Block(nn.Module):
    def forward(self, h):
        # Kept in float32.
        return self.apply_mlp(h, cast_unless=(torch.int8, torch.uint8,))
