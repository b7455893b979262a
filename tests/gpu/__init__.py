"""On a real GPU: what no other test can say."""
