# Rewritten already.
# block: LanguageModel("Model")
# skip: line 7: loss: already rewritten


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        logits = loss = None
        if labels is not None:
            loss = self.apply_loss(outputs[0])(labels=labels, vocab_size=self.vocab_size)
        if loss is None:
            logits = self.lm_head(outputs[0])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
