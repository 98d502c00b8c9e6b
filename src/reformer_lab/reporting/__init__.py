"""Result files, statistics and the report. Reads result files only; never imports training."""
