"""What an operator needs beside the grid: exporter, Pushgateway, messages to people, and retention."""
