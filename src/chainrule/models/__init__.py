"""One model, one file, one page; ``conf/model/`` says which exist."""
