# The head is called in a branch.
# block: LanguageModel("Model")
# skip: line 12: loss: no loss: `self.lm_head(outputs[0])` is not assigned to a variable in a line of its own


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        logits = None
        if labels is not None:
            logits = self.lm_head(outputs[0])
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
