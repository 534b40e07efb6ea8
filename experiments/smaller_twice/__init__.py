"""What distilling and quantizing each buy, on SmolLM2-135M-Instruct; see README.md."""
