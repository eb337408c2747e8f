"""Commands for what one does once a study is done: its texts and models read, steered, exported."""
