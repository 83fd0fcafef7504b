"""The recipe of paged-tiny: text generator, tokenizer, training and export of the bundled model."""
