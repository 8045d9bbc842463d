"""What several folders of tests stand on: checks that hold for every call, every lane and every protocol."""
