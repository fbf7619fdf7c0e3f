"""What a relayed packet costs: this relay beside others, measured in network namespaces (`make bench`)."""
