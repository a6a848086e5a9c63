"""What every study needs: checked parameters, resumable runs, shipped results, one command for all."""
