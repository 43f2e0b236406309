"""What several tests share: real servers, the example's data, clocks."""
