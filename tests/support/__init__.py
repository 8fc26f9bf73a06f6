"""What tests share: servers, oracles, small worlds with known answers."""
